"""Recall of re-ranked candidates: by hand, and against the official rule over whole score matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mwa_lightning.metrics.recall import Embedded
from mwa_lightning.metrics.reranking import Candidates, Ranking, best_candidates, reranked_figures

UNLISTED = -100.0  # of the official code


def official_figures(image_to_text: np.ndarray, text_to_image: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """`itm_eval` of salesforce/BLIP in words of our own, of scores without ties (m, n) and (n, m)."""
    i2t = [
        min(np.argsort(-scores).tolist().index(text) for text in np.flatnonzero(owner == image))
        for image, scores in enumerate(image_to_text)
    ]
    t2i = [np.argsort(-scores).tolist().index(owner[text]) for text, scores in enumerate(text_to_image)]
    figures = {
        f"{name}_r{k}": 100 * float(np.mean(np.array(ranks) < k))
        for name, ranks in (("i2t", i2t), ("t2i", t2i))
        for k in (1, 5, 10)
    }
    return figures | {"mean_recall": float(np.mean(list(figures.values())))}


def make_split(images: int = 40, captions: int = 5) -> Embedded:
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(images).repeat_interleave(captions)
    pictures = torch.nn.functional.normalize(torch.randn(images, 8, generator=generator), dim=1)
    texts = pictures[owner] + 0.9 * torch.randn(len(owner), 8, generator=generator)
    return Embedded(pictures, torch.nn.functional.normalize(texts, dim=1), owner)


def listed(scores: Tensor, candidates: Candidates) -> Candidates:
    return Candidates(candidates.rows, scores.gather(1, candidates.rows))


@pytest.mark.parametrize("k", [10, 17, 1000])
def test_reranked_figures__equal_the_official_rule(k: int) -> None:
    split = make_split()
    generator = torch.Generator().manual_seed(1)
    decided = split.images @ split.texts.T + 0.3 * torch.randn(40, 200, generator=generator)
    by_image = best_candidates(split.images, split.texts, k=k)
    by_text = best_candidates(split.texts, split.images, k=k)
    ours = reranked_figures(Ranking(listed(decided, by_image), listed(decided.T, by_text)), split)

    matrices = [
        torch.full_like(scores, UNLISTED).scatter(1, found.rows, scores.gather(1, found.rows)).numpy()
        for scores, found in ((decided, by_image), (decided.T.contiguous(), by_text))
    ]
    expected = official_figures(*matrices, split.text_image.numpy())
    assert ours == pytest.approx(expected)
    assert 0 < ours["i2t_r1"] < ours["i2t_r10"]


def test_best_candidates__are_the_highest_cosines_in_order() -> None:
    split = make_split()
    found = best_candidates(split.texts, split.images, k=7)
    cosines = split.texts @ split.images.T
    assert torch.equal(found.rows, cosines.argsort(dim=1, descending=True)[:, :7])
    assert torch.allclose(found.scores, cosines.gather(1, found.rows))
    assert best_candidates(split.texts, split.images, k=41).rows.shape == (200, 40)


def test_reranked_figures__ties_and_what_is_not_listed_count_against_us() -> None:
    # Image 0 has texts 0 and 1, image 1 has 2, ..., image 11 has 12.
    owner = torch.tensor([0, 0, *range(1, 12)])
    split = Embedded(torch.zeros(12, 1), torch.zeros(13, 1), owner)
    # Each image lists the next image's text and one of its own, with the same score: rank 2; image 0 not even its own.
    own = torch.tensor([4, *range(2, 13)]).unsqueeze(1)
    others = torch.tensor([2, *range(3, 13), 0]).unsqueeze(1)
    images = Candidates(torch.cat([others, own], dim=1), torch.ones(12, 2))
    # Each text lists its image first but for text 0, which does not list it: behind all 11 others.
    rows = torch.stack([owner, (owner + 1) % 12], dim=1)
    rows[0] = torch.tensor([5, 6])
    texts = Candidates(rows, torch.tensor([[2.0, 1.0]]).repeat(13, 1))
    figures = reranked_figures(Ranking(images, texts), split)
    assert figures["i2t_r1"] == 0
    assert figures["i2t_r5"] == figures["i2t_r10"] == pytest.approx(100 * 11 / 12)
    assert figures["t2i_r1"] == figures["t2i_r10"] == pytest.approx(100 * 12 / 13)


def test_reranked_figures__ones_own_texts_are_not_ahead_of_each_other() -> None:
    """Three images with two texts each, none of them listed: only the four of the others come before the best."""
    split = Embedded(torch.zeros(3, 1), torch.zeros(6, 1), torch.tensor([0, 0, 1, 1, 2, 2]))
    by_image = Candidates(torch.tensor([[2], [4], [0]]), torch.ones(3, 1))
    by_text = Candidates(torch.tensor([[1], [1], [2], [2], [0], [0]]), torch.ones(6, 1))
    figures = reranked_figures(Ranking(by_image, by_text), split)
    assert (figures["i2t_r1"], figures["i2t_r5"]) == (0, 100)
    assert (figures["t2i_r1"], figures["t2i_r5"]) == (0, 100)
