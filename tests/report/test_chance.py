"""Results that guessing gives too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mwa_lightning.metrics.recall import RetrievalRecall
from mwa_lightning.report.chance import _recalls_of_a_random_order, no_better_than_guessing


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
