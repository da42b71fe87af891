"""Results that guessing gives too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mwa_lightning.metrics.recall import RetrievalRecall
from mwa_lightning.report.chance import _recalls_of_a_random_order, beside, no_better_than_guessing, worse_than_frozen


@pytest.mark.parametrize(("images", "captions"), [(12, 1), (40, 5), (7, 2)])
def test_recalls__of_random_embeddings(images: int, captions: int) -> None:
    measured = []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        metric = RetrievalRecall()
        metric.update_images(torch.randn(images, 16, generator=generator), torch.arange(images))
        texts = images * captions
        metric.update_texts(
            torch.randn(texts, 16, generator=generator), torch.arange(texts), torch.arange(texts) // captions
        )
        figures = metric.compute()
        measured.append([float(figures[f"{way}_r{k}"]) for k in (1, 5, 10) for way in ("i2t", "t2i")])
    expected = 100 * np.array(_recalls_of_a_random_order(images, images * captions))
    np.testing.assert_allclose(np.mean(measured, axis=0), expected, atol=6)


@pytest.mark.parametrize(
    ("metrics", "guessing"),
    [
        ({"test/mean_recall": 0.0}, True),
        ({"test/mean_recall": 1.3}, True),
        ({"test/mean_recall": 9.0}, False),
        ({"test/accuracy": 50.0, "test/majority": 50.0}, True),
        ({"test/accuracy": 33.0, "test/majority": 50.0}, True),
        ({"test/accuracy": 62.0, "test/majority": 50.0}, False),
        ({"val/accuracy": 10.0, "val/majority": 50.0}, False),
        ({}, False),
    ],
)
def test_line__only_where_it_is_so(metrics: dict[str, float], guessing: bool) -> None:
    line = no_better_than_guessing(metrics, split="test", images=500, samples=2500)
    assert (line is not None) == guessing


@pytest.mark.parametrize(("adapted", "worse"), [(50.0, False), (45.0, False), (41.0, False), (35.0, True)])
def test_worse_than_frozen__beyond_chance(adapted: float, worse: bool) -> None:
    """Of 100 images a recall of 50 has a deviation of 5, two of them one of 7."""
    names = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
    metrics = {f"zero_shot/{name}": 50.0 for name in names} | {f"test/{name}": adapted for name in names}
    line = worse_than_frozen(metrics, split="test", images=100)
    assert (line is not None) == worse
    if line is not None:
        assert line.startswith("worse than the frozen model (35.00, frozen 50.00): lower optim.lr")
    assert worse_than_frozen({f"test/{name}": 1.0 for name in names}, split="test", images=100) is None


def test_beside__a_random_order_and_the_gain() -> None:
    metrics = {"test/mean_recall": 50.0, "zero_shot/mean_recall": 53.0}
    guessed = 100 * float(np.mean(_recalls_of_a_random_order(40, 200)))
    expected = pytest.approx({"random_order/mean_recall": guessed, "gain/mean_recall": -3.0})
    assert beside(metrics, split="test", images=40, samples=200) == expected
    assert beside({"test/accuracy": 50.0}, split="test", images=40, samples=200) == {}
