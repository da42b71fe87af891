"""Recall@K where a slower score decides among the best candidates of each query by a fast one.

Source: salesforce/ALBEF, Retrieval.py, and salesforce/BLIP, train_retrieval.py (`evaluation`, `itm_eval`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mwa_lightning.metrics.recall import BLOCK, Embedded, figures_of_ranks, full_precision


class Candidates(NamedTuple):
    """The k best candidates of each query: their rows (q, k), int64, and their scores (q, k), fp32."""

    rows: Tensor
    scores: Tensor


class Ranking(NamedTuple):
    """The candidates of each image among the texts and of each text among the images, with the scores that decide."""

    image_to_text: Candidates
    text_to_image: Candidates


@torch.no_grad()
def best_candidates(queries: Tensor, candidates: Tensor, *, k: int) -> Candidates:
    """The k highest cosines of queries (q, d) with candidates (c, d), in blocks of queries; all, where k is above c."""
    k = min(k, len(candidates))
    rows = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    scores = torch.empty(len(queries), k, device=queries.device)
    with full_precision(queries.device):
        for begin in range(0, len(queries), BLOCK):
            block = slice(begin, begin + BLOCK)
            best = (queries[block] @ candidates.T).topk(k, dim=1)
            scores[block], rows[block] = best.values, best.indices
    return Candidates(rows, scores)


def reranked_figures(ranking: Ranking, embedded: Embedded) -> dict[str, float]:
    """Recall@1/5/10 in both directions and their mean, in percent, of candidates with the scores that decide.

    Candidates that are not listed rank behind all that are, and as equals of each other: ties count against us.
    """
    image_to_text, text_to_image = ranking
    images, texts, text_image = embedded
    captions = torch.bincount(text_image, minlength=len(images))
    everyone = torch.arange(len(images), device=text_image.device).unsqueeze(1)
    ranks = {
        "i2t": listed_ranks(image_to_text, text_image[image_to_text.rows] == everyone, wrong=len(texts) - captions),
        "t2i": listed_ranks(
            text_to_image,
            text_to_image.rows == text_image.unsqueeze(1),
            wrong=torch.full_like(text_image, len(images) - 1),
        ),
    }
    return figures_of_ranks(ranks)


def listed_ranks(candidates: Candidates, right: Tensor, *, wrong: Tensor) -> Tensor:
    """Ranks from 1 (q,); `right` (q, k) tells which are, `wrong` (q,) how many others there are in all."""
    best = candidates.scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    ahead = ((candidates.scores >= best) & ~right).sum(dim=1)
    return 1 + torch.where(right.any(dim=1), ahead, wrong)
