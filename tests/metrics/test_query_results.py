"""Which candidates single queries find, and the rank of the right one: those of Recall@K."""

from __future__ import annotations

import pytest
import torch

from mwa_lightning.metrics.query_results import Found, captions_found, images_found
from mwa_lightning.metrics.recall import Embedded, best_ranks
from mwa_lightning.metrics.reranking import Candidates, Ranking, reranked_figures

# Image 0 has captions 0 and 1, image 1 caption 2, image 2 caption 3. Similarities are the captions' coordinates.
TEXTS = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.5, 0.4], [0.8, 0.7, 0.1], [0.2, 0.9, 0.6]])
EMBEDDED = Embedded(torch.eye(3), TEXTS, torch.tensor([0, 0, 1, 2]))


def test_found__best_first_with_the_right_ones_and_their_rank() -> None:
    assert captions_found(EMBEDDED, [0, 1], k=2) == [
        Found(0, (0, 2), frozenset({0, 1}), 1),
        Found(1, (3, 2), frozenset({2}), 2),
    ]
    assert images_found(EMBEDDED, [1, 3], k=9) == [
        Found(1, (1, 2, 0), frozenset({0}), 3),
        Found(3, (1, 2, 0), frozenset({2}), 2),
    ]


def test_found__ranks_are_those_of_all_queries_at_once() -> None:
    torch.manual_seed(0)
    images, texts = torch.randn(20, 4), torch.randn(60, 4)
    embedded = Embedded(images, texts, torch.arange(60) // 3)
    every = best_ranks(texts, images, embedded.text_image.unsqueeze(1)).tolist()
    asked = [0, 7, 31, 59]
    assert [found.rank for found in images_found(embedded, asked, k=5)] == [every[row] for row in asked]


def test_found__ties_count_against_the_right_one() -> None:
    alike = Embedded(torch.ones(3, 1), torch.ones(4, 1), torch.tensor([0, 0, 1, 2]))
    assert captions_found(alike, [0], k=1)[0].rank == 3
    assert images_found(alike, [0], k=1)[0].rank == 3


def test_found__by_a_ranking_with_scores_of_its_own() -> None:
    """Of image 1 the right caption is not listed: it comes after all the others."""
    ranking = Ranking(
        image_to_text=Candidates(
            torch.tensor([[2, 1], [3, 0], [3, 2]]), torch.tensor([[0.1, 0.6], [0.3, 0.5], [1, 2]])
        ),
        text_to_image=Candidates(torch.tensor([[0], [1], [1], [2]]), torch.ones(4, 1)),
    )
    found = captions_found(EMBEDDED, [0, 1, 2], k=5, ranking=ranking)
    assert [one.best for one in found] == [(1, 2), (0, 3), (2, 3)]
    assert [one.rank for one in found] == [1, 4, 2]
    assert [one.rank for one in images_found(EMBEDDED, [0, 1], k=5, ranking=ranking)] == [1, 3]
    assert reranked_figures(ranking, EMBEDDED)["i2t_r1"] == pytest.approx(100 / 3)
