"""What single queries of a retrieval find: their best candidates, and where the right one stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mwa_lightning.metrics.recall import Embedded, best_ranks, captions_of_each
from mwa_lightning.metrics.reranking import Candidates, Ranking, best_candidates, listed_ranks


class Found(NamedTuple):
    """What one query finds. Queries and candidates are given by their rows.

    Attributes:
        query: The query.
        best: Its best candidates, the best first.
        right: All candidates that are right.
        rank: The rank of the best right one, from 1, by the rule of Recall@K: ties count against it.
    """

    query: int
    best: tuple[int, ...]
    right: frozenset[int]
    rank: int


def captions_found(embedded: Embedded, images: Sequence[int], *, k: int, ranking: Ranking | None = None) -> list[Found]:
    """The k best captions of each of some images, by the embeddings, or by a ranking with scores of its own."""
    right = captions_of_each(embedded.text_image, len(embedded.images))
    listed = None if ranking is None else ranking.image_to_text
    return _found(embedded.images, embedded.texts, right, images, k=k, listed=listed)


def images_found(embedded: Embedded, captions: Sequence[int], *, k: int, ranking: Ranking | None = None) -> list[Found]:
    """The k best images of each of some captions, by the embeddings, or by a ranking with scores of its own."""
    right = embedded.text_image.unsqueeze(1)
    listed = None if ranking is None else ranking.text_to_image
    return _found(embedded.texts, embedded.images, right, captions, k=k, listed=listed)


@torch.no_grad()
def _found(
    queries: Tensor,
    candidates: Tensor,
    right: Tensor,
    asked: Sequence[int],
    *,
    k: int,
    listed: Candidates | None,
) -> list[Found]:
    """Only the rows of the queries that are asked are scored; `right` (all queries, most) is filled up with -1."""
    rows = torch.tensor(asked, device=queries.device)
    right = right[rows]
    if listed is None:
        best = best_candidates(queries[rows], candidates, k=k).rows
        ranks = best_ranks(queries[rows], candidates, right)
    else:
        some = Candidates(listed.rows[rows], listed.scores[rows])
        order = some.scores.topk(min(k, some.scores.shape[1]), dim=1).indices
        best = some.rows.gather(1, order)
        is_right = (some.rows.unsqueeze(2) == right.unsqueeze(1)).any(dim=2)
        ranks = listed_ranks(some, is_right, wrong=len(candidates) - (right >= 0).sum(dim=1))
    return [
        Found(query, tuple(own), frozenset(row for row in those if row >= 0), rank)
        for query, own, those, rank in zip(asked, best.tolist(), right.tolist(), ranks.tolist(), strict=True)
    ]
