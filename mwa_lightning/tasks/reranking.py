"""Re-ranking: the matching head decides among the candidates that the embeddings have found.

Source: salesforce/ALBEF, Retrieval.py, and salesforce/BLIP, train_retrieval.py (`evaluation`). Unlike there, an image's
keys and values are computed once for all of its texts, a pair that is a candidate both ways is scored once, and in
several processes each pair is scored where its image is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, distributed

from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.errors import NotFinite
from mwa_lightning.metrics.recall import Embedded
from mwa_lightning.metrics.reranking import Candidates, Ranking, best_candidates
from mwa_lightning.report.progress import Clock
from mwa_lightning.tasks.heads import FusionRetrievalHeads
from mwa_lightning.tasks.losses.functions import several_processes
from mwa_lightning.tasks.model import RetrievalModel
from mwa_lightning.tasks.sharding import is_sharded

log = logging.getLogger(__name__)
T = TypeVar("T")

PAIRS = 256  # an image is scored with so many texts at once


class Question(NamedTuple):
    """Which texts an image is scored with.

    `row` is its place; `asking` are the places among the candidates of all texts that it is one of; `groups` the texts,
    each distinct one once; `which` of these is meant by each of its own candidates and then by `asking`.
    """

    row: int
    asking: Tensor
    groups: Tensor
    which: Tensor


class Reranker:
    """Keeps what an evaluation encodes, and scores the best candidates of each image and each text once more.

    The vision tokens stay in main memory, in the precision that the layers take: of 5,000 images at 384 px 9 GB in
    fp32, half of that in bf16, over all processes. The score of a pair is the matching head's logit for a match, with
    the cosine added as in BLIP and LAVIS, or without as in the original ALBEF.

    Args:
        k: Candidates of each query; with as many as there are, every pair is scored.
        add_cosine: Whether the cosine is added.
    """

    def __init__(self, *, k: int, add_cosine: bool) -> None:
        self.k = k
        self.add_cosine = add_cosine
        # The pairs that this process has scored last (p, 2), in that order: places of image and text in the split.
        self.scored = torch.empty(0, 2, dtype=torch.int64)
        self.reset()

    def reset(self) -> None:
        self._images: dict[int, Tensor] = {}
        self._texts: dict[int, tuple[int, ...]] = {}

    def add_images(self, tokens: Tensor, index: Tensor) -> None:
        """Keep the vision tokens (b, k, d) of images, whose numbers in file order are (b,)."""
        device = tokens.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tokens.dtype
        # The layers that read them cast them to this type anyway.
        self._images |= zip(index.tolist(), tokens.detach().to("cpu", kind).unbind(), strict=True)

    def add_texts(self, ids: Tensor, mask: Tensor, index: Tensor) -> None:
        """Keep the real ones of the ids (b, n), by mask (b, n), of texts whose numbers in file order are (b,)."""
        rows = zip(ids.tolist(), mask.sum(dim=1).tolist(), strict=True)
        self._texts |= zip(index.tolist(), (tuple(row[:length]) for row, length in rows), strict=True)

    @torch.no_grad()
    def rank(self, embedded: Embedded, model: RetrievalModel) -> Ranking:
        """Score the candidates of the embeddings of a whole split; every process gets all scores.

        Raises NotFinite if a score is not finite.
        """
        images, texts, _ = embedded
        device = images.device
        by_image = best_candidates(images, texts, k=self.k)
        by_text = best_candidates(texts, images, k=self.k)
        place = {number: row for row, number in enumerate(sorted(_gather(set(self._images))))}
        groups, distinct = self._distinct_texts()
        group_of = torch.tensor(groups, device=device)

        # Of each text's candidates, those of one image after the other.
        order = by_text.rows.flatten().argsort(stable=True)
        ends = torch.bincount(by_text.rows.flatten(), minlength=len(images)).cumsum(0).tolist()
        match = Ranking(
            Candidates(by_image.rows, torch.zeros_like(by_image.scores)),
            Candidates(by_text.rows, torch.zeros_like(by_text.scores)),
        )
        scores_of_texts = match.text_to_image.scores.view(-1)

        questions: dict[int, Question] = {}
        for number in self._images:
            row = place[number]
            asking = order[ends[row - 1] if row else 0 : ends[row]]
            wanted = torch.cat([group_of[by_image.rows[row]], group_of[asking // by_text.rows.shape[1]]])
            questions[number] = Question(row, asking, *wanted.unique(return_inverse=True))
        if is_sharded(model):
            passes = sum(-(-len(question.groups) // PAIRS) for question in questions.values())
            _keep_step(model, passes=passes, device=device)
        first_text = {group: text for text, group in reversed(list(enumerate(groups)))}
        scored = [(row, first_text[group]) for row, _, wanted, _ in questions.values() for group in wanted.tolist()]
        self.scored = torch.tensor(scored, dtype=torch.int64).view(-1, 2)
        for number, tokens in _with_progress(self._images):
            row, asking, wanted, which = questions[number]
            scores = match_scores(model, tokens.unsqueeze(0).to(device), [distinct[group] for group in wanted.tolist()])
            own, others = scores[which].split([by_image.rows.shape[1], len(asking)])
            match.image_to_text.scores[row] = own
            scores_of_texts[asking] = others
        return Ranking(self._finish(match.image_to_text, by_image), self._finish(match.text_to_image, by_text))

    def _distinct_texts(self) -> tuple[list[int], list[tuple[int, ...]]]:
        """The number of each text among the distinct ones, in file order, and these, the short ones first.

        Equal texts are scored once: so they tie, and ties count against us.
        """
        texts = [text for _, text in sorted(_gather(set(self._texts.items())))]
        distinct = sorted(set(texts), key=lambda text: (len(text), text))
        numbers = {text: number for number, text in enumerate(distinct)}
        return [numbers[text] for text in texts], distinct

    def _finish(self, match: Candidates, found: Candidates) -> Candidates:
        """The scores that decide, from all processes: a pair was scored by one of them, and is zero in the others."""
        scores = match.scores
        if several_processes():
            distributed.all_reduce(scores)
        if not bool(scores.isfinite().all()):
            raise NotFinite(
                "retrieval: the matching head gives scores that are not finite; the weights diverged or the file is "
                "damaged: lower optim.lr, or give other weights"
            )
        return Candidates(match.rows, scores + found.scores if self.add_cosine else scores)


def _keep_step(model: RetrievalModel, *, passes: int, device: torch.device) -> None:
    """Make passes of no texts where another process has more passes to make than this one.

    Each pass of a sharded model gathers weights, for which all processes are needed; the empty ones come first.
    """
    most = torch.tensor(passes, device=device)
    distributed.all_reduce(most, op=distributed.ReduceOp.MAX)
    assert isinstance(model.backbone, FusionEncoder)
    nothing = torch.zeros(1, 1, model.backbone.vision_width, device=device)
    for _ in range(int(most) - passes):
        _match(model, nothing, [])


def match_scores(model: RetrievalModel, tokens: Tensor, texts: list[tuple[int, ...]]) -> Tensor:
    """The logit of "match" of one image, tokens (1, k, d), with each of the texts, given as ids: (t,), fp32."""
    scores = [_match(model, tokens, texts[begin : begin + PAIRS]) for begin in range(0, len(texts), PAIRS)]
    return torch.cat(scores) if scores else torch.empty(0, device=tokens.device)


def _match(model: RetrievalModel, tokens: Tensor, texts: list[tuple[int, ...]]) -> Tensor:
    """One pass of `match_scores`."""
    backbone, heads = model.backbone, model.heads
    assert isinstance(backbone, FusionEncoder)
    assert isinstance(heads, FusionRetrievalHeads)
    lengths = [len(text) for text in texts]
    longest = max(lengths, default=1)
    ids = torch.tensor(
        [text + (0,) * (longest - len(text)) for text in texts], dtype=torch.int64, device=tokens.device
    ).view(-1, longest)
    mask = (torch.arange(longest) < torch.tensor(lengths, dtype=torch.int64).unsqueeze(1)).to(tokens.device)
    return heads.match(backbone.fuse([tokens], ids, mask))[:, 1]


def _gather(own: set[T]) -> set[T]:
    """What all processes have."""
    if not several_processes():
        return own
    parts: list[set[T]] = [set()] * distributed.get_world_size()
    distributed.all_gather_object(parts, own)
    return set().union(*parts)


def _with_progress(images: dict[int, Tensor]) -> Iterator[tuple[int, Tensor]]:
    """The images one after the other; now and then a line with the time that is left."""
    clock = Clock(len(images))
    for done, item in enumerate(images.items()):
        if line := clock.line(done):
            log.info("re-ranking: image %s", line)
        yield item
    log.info("re-ranked the candidates of %d images in %s", len(images), clock.elapsed())
