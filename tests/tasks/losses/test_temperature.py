from __future__ import annotations

import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from mwa_lightning.tasks.heads import FusionRetrievalHeads, RetrievalHeads, SiglipHeads
from mwa_lightning.tasks.losses.functions import contrastive_loss, sigmoid_loss
from mwa_lightning.tasks.losses.temperature import (
    Similarities,
    fitted,
    fitted_matching,
    pairwise_loss,
    similarities,
    softmax_loss,
    start_logits,
    start_matching,
)
from mwa_lightning.tasks.retrieval import RetrievalTask
from tests.tasks.fusion_models import FAMILIES, make_batch, make_model


def embeddings(seed: int, *, alike: float, pairs: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Images and texts of unit length (b, 8), the more `alike` the more; two of the pairs are of one image."""
    generator = torch.Generator().manual_seed(seed)
    images = functional.normalize(torch.randn(pairs, 8, generator=generator), dim=1)
    other = torch.randn(pairs, 8, generator=generator)
    return images, functional.normalize(alike * images + other, dim=1), torch.arange(pairs).clamp(min=1)


def batches_of(*seeds: int, alike: float) -> list[Similarities]:
    return [similarities(*embeddings(seed, alike=alike), mask_same_image=True) for seed in seeds]


@pytest.mark.parametrize("mask", [True, False])
def test_losses__are_those_of_training(mask: bool) -> None:
    images, texts, ids = embeddings(0, alike=1.0)
    batch, scale, bias = similarities(images, texts, ids, mask_same_image=mask), torch.tensor(7.0), torch.tensor(-3.0)
    options = {"logit_scale": scale.log(), "image_ids": ids, "mask_same_image": mask}
    assert softmax_loss(batch, scale, bias).item() == pytest.approx(contrastive_loss(images, texts, **options).item())
    wanted = sigmoid_loss(images, texts, logit_bias=bias, **options)
    assert pairwise_loss(batch, scale, bias).item() == pytest.approx(wanted.item(), rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.0, 3.0))
def test_fitted__is_the_best_of_a_fine_grid(seed: int, alike: float) -> None:
    batches = batches_of(seed, seed + 1, alike=alike)
    found = fitted(batches, softmax_loss, smallest=1.0, largest=100.0)
    grid = torch.linspace(0, math.log(100), 400, dtype=torch.float64).exp()
    losses = [sum(softmax_loss(batch, scale, scale) for batch in batches).item() / 2 for scale in grid]
    assert found.loss <= min(losses) + 1e-6
    assert found.loss == pytest.approx(min(losses), abs=1e-3)
    assert 1.0 <= found.scale <= 100.0


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0.0, 3.0))
def test_fitted__of_the_sigmoid_loss_is_the_best_of_a_grid(seed: int, alike: float) -> None:
    batches = batches_of(seed, alike=alike)
    found = fitted(batches, pairwise_loss, smallest=1.0, largest=100.0)
    grid = torch.linspace(0, math.log(100), 60, dtype=torch.float64).exp()
    biases = torch.linspace(-40, 5, 90, dtype=torch.float64)
    assert found.loss <= min(pairwise_loss(batches[0], s, b).item() for s in grid for b in biases) + 1e-6


def test_fitted__embeddings_without_a_bond_get_the_smallest_scale_and_the_loss_of_knowing_nothing() -> None:
    images, texts, ids = embeddings(3, alike=0.0, pairs=64)
    nothing = math.log(64)
    batch = [similarities(images, texts, ids, mask_same_image=False)]
    assert softmax_loss(batch[0], torch.tensor(36.0), torch.tensor(0.0)) > 2 * nothing
    found = fitted(batch, softmax_loss, smallest=0.1, largest=100.0)
    assert found.loss == pytest.approx(nothing, abs=0.02)


def test_start_logits__says_before_and_after_and_sets_the_scale() -> None:
    heads = RetrievalHeads(width=8)
    line = start_logits(heads, batches_of(0, alike=0.0), loss="softmax", wanted="fitted", largest=100.0)
    found = fitted(batches_of(0, alike=0.0), softmax_loss, smallest=1.0, largest=100.0)
    assert heads.logit_scale.exp().item() == pytest.approx(found.scale)
    assert f"by {found.scale:.3g} in place of 14.3" in line
    assert f"begins at {found.loss:.2f}" in line


def test_start_logits__a_number_is_the_scale() -> None:
    heads = RetrievalHeads(width=8)
    start_logits(heads, batches_of(0, alike=0.0), loss="softmax", wanted=5.0, largest=100.0)
    assert heads.logit_scale.exp().item() == pytest.approx(5.0)


def test_start_logits__of_siglip_also_sets_the_bias() -> None:
    heads = SiglipHeads(
        vision_width=8, vision_heads=2, vision_ffn_width=8, text_width=8, activation="gelu", norm_epsilon=1e-6
    )
    batches = batches_of(0, 1, alike=1.0)
    start_logits(heads, batches, loss="sigmoid", wanted="fitted", largest=100.0)
    found = fitted(batches, pairwise_loss, smallest=1.0, largest=100.0)
    assert heads.logit_bias.item() == pytest.approx(found.bias)
    assert heads.logit_scale.exp().item() == pytest.approx(found.scale)


@pytest.mark.parametrize("confident", [0.0, 5.0, -5.0])
def test_start_matching__folds_scale_and_bias_into_the_head(confident: float) -> None:
    heads = FusionRetrievalHeads(vision_width=6, text_width=6, width=4)
    generator = torch.Generator().manual_seed(0)
    tokens, labels = torch.randn(30, 1, 6, generator=generator), torch.arange(30) % 3 == 0
    nn.init.normal_(heads.matching.weight, std=3.0, generator=generator)
    nn.init.constant_(heads.matching.bias[1:], confident)

    def margins() -> Tensor:
        logits = heads.match(tokens).detach()
        return logits[:, 1] - logits[:, 0]

    before = margins()
    found = fitted_matching(before, labels.long())
    line = start_matching(heads, before, labels.long())
    assert torch.allclose(margins(), found.scale * before + found.bias, atol=1e-5)
    loss = functional.binary_cross_entropy_with_logits(margins(), labels.float()).item()
    assert loss == pytest.approx(found.loss, abs=1e-5)
    nothing = math.log(3) - 2 / 3 * math.log(2)
    assert loss <= nothing + 1e-6
    assert line.endswith(f"(knowing nothing: {nothing:.2f})")


@pytest.mark.parametrize("family", FAMILIES)
def test_fit_start__begins_a_fusion_model_at_or_below_knowing_nothing(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, batch = make_model(FAMILIES[family]), make_batch(1, 2, 3, 4)
    with torch.no_grad():
        model.heads.logit_scale.fill_(math.log(80.0))
    task = RetrievalTask(model=model, logit_scale="fitted")
    assert task.samples_to_fit > 0
    with caplog.at_level(logging.INFO), torch.no_grad():
        task.fit_start([batch, batch])
    assert model.heads.logit_scale.exp().item() < 80.0
    assert "task.logit_scale=fitted" in caplog.text
    assert "image-text matching begins" in caplog.text


def test_fit_start__a_frozen_scale_stays(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(FAMILIES["blip"])
    model.heads.logit_scale.requires_grad_(False)
    before = model.heads.logit_scale.clone()
    RetrievalTask(model=model, logit_scale=3.0).fit_start([make_batch(1, 2)])
    assert torch.equal(model.heads.logit_scale, before)
    assert "the scale is frozen" in caplog.text
