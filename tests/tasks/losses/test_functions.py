"""The contrastive loss against plain float64 code, its mask, its numbers, and the bound of the scale."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mwa_lightning.tasks.losses.functions import clamp_logit_scale, contrastive_loss, sigmoid_loss


def plain(images: Tensor, texts: Tensor, scale: float, ids: list[int], *, mask: bool) -> float:
    """The definition, pair by pair."""
    left, right = images.double().numpy(), texts.double().numpy()
    total, count = 0.0, len(ids)
    for i in range(count):
        taken = [j for j in range(count) if j == i or not (mask and ids[i] == ids[j])]
        for scores in (left @ right.T, right @ left.T):
            logits = {j: scale * float(scores[i, j]) for j in taken}
            top = max(logits.values())
            total += top + math.log(sum(math.exp(value - top) for value in logits.values())) - logits[i]
    return total / (2 * count)


def pairs(count: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = (torch.randn(count, width, generator=generator) for _ in range(2))
    first, second = (nn.functional.normalize(draw, dim=1) for draw in draws)
    return first, second


@settings(max_examples=40, deadline=None)
@given(
    ids=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    width=st.integers(2, 9),
    scale=st.floats(0.5, 100.0),
    mask=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_contrastive_loss__equals_plain_code(ids: list[int], width: int, scale: float, mask: bool, seed: int) -> None:
    images, texts = pairs(len(ids), width, seed)
    loss = contrastive_loss(
        images,
        texts,
        logit_scale=torch.tensor(scale).log(),
        image_ids=torch.tensor(ids),
        mask_same_image=mask,
    )
    assert loss.item() == pytest.approx(plain(images, texts, scale, ids, mask=mask), rel=2e-5, abs=2e-5)


def test_contrastive_loss__numbers() -> None:
    # Cosines 1 on the diagonal and 0 elsewhere, scale 2: log(1 + (b - 1) e^-2) for each row.
    loss = contrastive_loss(
        torch.eye(4),
        torch.eye(4),
        logit_scale=torch.tensor(2.0).log(),
        image_ids=torch.arange(4),
        mask_same_image=True,
    )
    assert loss.item() == pytest.approx(math.log(1 + 3 * math.exp(-2)), rel=1e-6)


def test_contrastive_loss__official_takes_same_image_as_negative() -> None:
    ids = torch.tensor([5, 5, 6])
    images, texts = torch.eye(3)[[0, 0, 1]], torch.eye(3)[[0, 0, 1]]
    options = {"logit_scale": torch.tensor(0.0), "image_ids": ids}
    masked = contrastive_loss(images, texts, **options, mask_same_image=True)
    official = contrastive_loss(images, texts, **options, mask_same_image=False)
    e = math.e
    one, other = math.log((e + 1) / e), math.log((e + 2) / e)
    assert masked.item() == pytest.approx((2 * one + other) / 3, rel=1e-6)
    assert official.item() == pytest.approx((2 * math.log((2 * e + 1) / e) + other) / 3, rel=1e-6)


def test_contrastive_loss__masked_pairs_get_no_gradient() -> None:
    images, texts = (rows.requires_grad_() for rows in pairs(2, 4, 0))
    scale = nn.Parameter(torch.tensor(1.0))
    options = {"logit_scale": scale, "image_ids": torch.tensor([3, 3])}
    contrastive_loss(images, texts, **options, mask_same_image=True).backward()
    assert images.grad is not None
    assert not images.grad.any()
    contrastive_loss(images, texts, **options, mask_same_image=False).backward()
    assert images.grad.any()


def test_contrastive_loss__fp32_under_autocast() -> None:
    images, texts = pairs(32, 64, 1)
    options = {
        "logit_scale": torch.tensor(100.0).log(),
        "image_ids": torch.arange(32),
        "mask_same_image": True,
    }
    expected = contrastive_loss(images, texts, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(images, texts, **options)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_contrastive_loss__gradient_of_the_scale_by_differences() -> None:
    images, texts = pairs(6, 5, 2)
    ids = [0, 1, 1, 2, 3, 3]
    logarithm = nn.Parameter(torch.tensor(1.3))
    loss = contrastive_loss(images, texts, logit_scale=logarithm, image_ids=torch.tensor(ids), mask_same_image=True)
    loss.backward()
    above, below = (plain(images, texts, math.exp(1.3 + step), ids, mask=True) for step in (1e-5, -1e-5))
    assert logarithm.grad is not None
    assert logarithm.grad.item() == pytest.approx((above - below) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("mask", [True, False])
def test_contrastive_loss__gradients_of_both_sides_equal_those_of_plain_code(mask: bool) -> None:
    images, texts = (rows.double().requires_grad_() for rows in pairs(6, 5, 2))
    ids = torch.tensor([0, 1, 1, 2, 3, 3])
    others = (ids.unsqueeze(1) == ids).fill_diagonal_(False) if mask else torch.zeros(6, 6, dtype=torch.bool)
    logits = (3.0 * images @ texts.T).masked_fill(others, -torch.inf)
    right = torch.arange(6)
    expected = (nn.functional.cross_entropy(logits, right) + nn.functional.cross_entropy(logits.T, right)) / 2
    wanted = torch.autograd.grad(expected, (images, texts))
    loss = contrastive_loss(images, texts, logit_scale=torch.tensor(3.0).log(), image_ids=ids, mask_same_image=mask)
    for found, gradient in zip(torch.autograd.grad(loss, (images, texts)), wanted, strict=True):
        assert ((found - gradient).norm() / gradient.norm()).item() < 1e-5


def plain_sigmoid(images: Tensor, texts: Tensor, scale: float, bias: float, ids: list[int], *, mask: bool) -> float:
    """The definition, pair by pair."""
    total = 0.0
    for i, image in enumerate(images.double()):
        for j, text in enumerate(texts.double()):
            if i == j or not (mask and ids[i] == ids[j]):
                logit = scale * float(image @ text) + bias
                total += math.log1p(math.exp(-logit if i == j else logit))
    return total / len(ids)


@settings(max_examples=40, deadline=None)
@given(
    ids=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    scale=st.floats(0.5, 120.0),
    bias=st.floats(-17.0, 2.0),
    mask=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_sigmoid_loss__equals_plain_code(ids: list[int], scale: float, bias: float, mask: bool, seed: int) -> None:
    images, texts = pairs(len(ids), 5, seed)
    loss = sigmoid_loss(
        images,
        texts,
        logit_scale=torch.tensor(scale).log(),
        logit_bias=torch.tensor(bias),
        image_ids=torch.tensor(ids),
        mask_same_image=mask,
    )
    assert loss.item() == pytest.approx(plain_sigmoid(images, texts, scale, bias, ids, mask=mask), rel=2e-5, abs=2e-5)


def test_sigmoid_loss__numbers() -> None:
    # Cosines 1 on the diagonal and 0 elsewhere, scale 2, bias -1: logits 1 and -1, all pairs by log(1 + 1/e).
    loss = sigmoid_loss(
        torch.eye(4),
        torch.eye(4),
        logit_scale=torch.tensor(2.0).log(),
        logit_bias=torch.tensor(-1.0),
        image_ids=torch.arange(4),
        mask_same_image=True,
    )
    assert loss.item() == pytest.approx(4 * math.log(1 + math.exp(-1)), rel=1e-6)


def test_sigmoid_loss__fp32_under_autocast() -> None:
    images, texts = pairs(32, 64, 1)
    options = {"logit_scale": torch.tensor(100.0).log(), "logit_bias": torch.tensor(-10.0), "mask_same_image": True}
    expected = sigmoid_loss(images, texts, **options, image_ids=torch.arange(32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sigmoid_loss(images, texts, **options, image_ids=torch.arange(32))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_sigmoid_loss__gradients_of_scale_and_bias_by_differences() -> None:
    images, texts = pairs(6, 5, 2)
    ids = [0, 1, 1, 2, 3, 3]
    scale, bias = nn.Parameter(torch.tensor(1.3)), nn.Parameter(torch.tensor(-2.0))
    options = {"image_ids": torch.tensor(ids), "mask_same_image": True}
    sigmoid_loss(images, texts, logit_scale=scale, logit_bias=bias, **options).backward()

    def at(logarithm: float, shift: float) -> float:
        return plain_sigmoid(images, texts, math.exp(logarithm), shift, ids, mask=True)

    assert scale.grad is not None
    assert bias.grad is not None
    assert scale.grad.item() == pytest.approx((at(1.3 + 1e-5, -2.0) - at(1.3 - 1e-5, -2.0)) / 2e-5, rel=1e-4)
    assert bias.grad.item() == pytest.approx((at(1.3, -2.0 + 1e-5) - at(1.3, -2.0 - 1e-5)) / 2e-5, rel=1e-4)


class TestClamp:
    @pytest.mark.parametrize(("before", "after"), [(7.0, math.log(100)), (3.0, 3.0), (-2.0, -2.0)])
    def test_clamp_logit_scale__bound(self, before: float, after: float) -> None:
        scale = nn.Parameter(torch.tensor(before))
        clamp_logit_scale(scale, largest=100.0)
        assert scale.item() == pytest.approx(after, rel=1e-6)
        assert scale.requires_grad

    def test_clamp_logit_scale__frozen_is_left_alone(self) -> None:
        scale = nn.Parameter(torch.tensor(7.0), requires_grad=False)
        clamp_logit_scale(scale, largest=100.0)
        assert scale.item() == 7.0

    def test_clamp_logit_scale__leaves_the_bound_again(self) -> None:
        # Captions of the wrong images: the loss wants a smaller scale, and at the bound it still gets one.
        images, _ = pairs(8, 16, 0)
        scale = nn.Parameter(torch.tensor(100.0).log())
        for _ in range(3):
            loss = contrastive_loss(
                images,
                images.roll(1, dims=0),
                logit_scale=scale,
                image_ids=torch.arange(8),
                mask_same_image=True,
            )
            (gradient,) = torch.autograd.grad(loss, scale)
            with torch.no_grad():
                scale -= 0.01 * gradient
            clamp_logit_scale(scale, largest=100.0)
        assert scale.item() < math.log(100) - 0.1
