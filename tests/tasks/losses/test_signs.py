"""What guessing costs, against the losses themselves, and how far samples lie apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from mwa_lightning.tasks.losses.functions import (
    classification_loss,
    contrastive_loss,
    momentum_contrastive_loss,
    sigmoid_loss,
)
from mwa_lightning.tasks.losses.signs import (
    knowing_nothing_of_classes,
    knowing_nothing_of_contrast,
    knowing_nothing_of_matching,
    variance,
    variance_of_logits,
)

IMAGE_IDS = torch.tensor([3, 9, 3, 4, 9, 5, 3])
ALIKE = functional.normalize(torch.ones(7, 4), dim=1)


@pytest.mark.parametrize("mask", [False, True])
def test_contrast__is_the_loss_of_equal_embeddings(mask: bool) -> None:
    loss = contrastive_loss(ALIKE, ALIKE, logit_scale=torch.tensor(3.6), image_ids=IMAGE_IDS, mask_same_image=mask)
    found = knowing_nothing_of_contrast(IMAGE_IDS, mask_same_image=mask)
    assert found.weight == 7
    torch.testing.assert_close(found.value, loss)


def test_contrast__with_a_queue_is_the_loss_of_equal_embeddings() -> None:
    queue = (ALIKE[:5], ALIKE[:5], torch.tensor([1, 2, 3, 8, 9]))
    loss = momentum_contrastive_loss(
        ALIKE,
        ALIKE,
        slow=(ALIKE, ALIKE),
        queue=queue,
        logit_scale=torch.tensor(3.6),
        image_ids=IMAGE_IDS,
        distillation=0.4,
    )
    found = knowing_nothing_of_contrast(IMAGE_IDS, mask_same_image=False, further=5)
    torch.testing.assert_close(found.value, loss)


@pytest.mark.parametrize("mask", [False, True])
def test_contrast__of_the_sigmoid_is_that_of_the_best_bias(mask: bool) -> None:
    losses = [
        float(
            sigmoid_loss(
                ALIKE,
                ALIKE,
                logit_scale=torch.tensor(-30.0),
                logit_bias=torch.tensor(bias),
                image_ids=IMAGE_IDS,
                mask_same_image=mask,
            )
        )
        for bias in np.arange(-3, 0, 0.01)
    ]
    found = float(knowing_nothing_of_contrast(IMAGE_IDS, mask_same_image=mask, sigmoid=True).value)
    assert found == pytest.approx(min(losses), abs=1e-3)


def test_contrast__of_one_pair_or_none_is_nothing() -> None:
    for sigmoid in (False, True):
        one = knowing_nothing_of_contrast(IMAGE_IDS[:1], mask_same_image=True, sigmoid=sigmoid)
        assert float(one.value) == pytest.approx(0)
        none = knowing_nothing_of_contrast(IMAGE_IDS[:0], mask_same_image=True, shares=(0, 3), sigmoid=sigmoid)
        assert none.weight == 0
        assert none.value.isfinite()


def test_matching__is_the_entropy_of_its_labels() -> None:
    third = -(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3
    assert float(knowing_nothing_of_matching(IMAGE_IDS, IMAGE_IDS).value) == pytest.approx(third)
    alike = torch.tensor([4, 4])
    assert float(knowing_nothing_of_matching(alike, alike).value) == 0
    # One pair, whose wrong partners are those of other processes; and none at all.
    assert float(knowing_nothing_of_matching(IMAGE_IDS[:1], IMAGE_IDS).value) == pytest.approx(third)
    none = knowing_nothing_of_matching(IMAGE_IDS[:0], IMAGE_IDS)
    assert (float(none.value), none.weight) == (0, 0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classes__is_the_loss_of_the_best_constant(smoothing: float) -> None:
    labels, shares = torch.tensor([0, 0, 0, 2]), torch.tensor([0.75, 0.0, 0.25])
    answer = ((1 - smoothing) * shares + smoothing / 3).clamp(min=1e-38).log().expand(4, 3)
    loss = classification_loss(answer, labels, label_smoothing=smoothing)
    found = knowing_nothing_of_classes(labels, shares, label_smoothing=smoothing)
    assert found.weight == 4
    torch.testing.assert_close(found.value, loss)
    if not smoothing:
        assert float(loss) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


def test_variance__is_that_of_numpy_and_weighs_nothing_of_one_sample() -> None:
    torch.manual_seed(0)
    rows = torch.randn(6, 4)
    found = variance(rows)
    assert found.weight == 5
    assert float(found.value) == pytest.approx(np.var(rows.numpy(), axis=0, ddof=1).sum())
    assert float(variance(ALIKE).value) == 0
    assert [variance(rows[:count]).weight for count in (0, 1)] == [0, 0]
    assert not variance(rows.requires_grad_()).value.requires_grad


def test_variance_of_logits__does_not_see_what_the_softmax_does_not_see() -> None:
    logits = torch.arange(5.0).unsqueeze(1).expand(5, 3)
    assert float(variance_of_logits(logits).value) == 0
    assert float(variance_of_logits(logits * torch.tensor([1.0, -1.0, 0.0])).value) == pytest.approx(2 * 2.5)
