"""Image-text matching: does a text belong to its image? The wrong ones that look right teach it.

Source: Li et al., "Align before Fuse" (arXiv 2107.07651), section 3.2. In salesforce/ALBEF (models/model_retrieval.py)
wrong partners come from the batch of their own process; in salesforce/BLIP (models/blip_retrieval.py)
`negative_all_rank` says whether they come from those of all: on in configs/retrieval_coco.yaml, off in
configs/retrieval_flickr.yaml. LAVIS has the same in both families.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed
from torch.nn import functional

from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.tasks.heads import FusionRetrievalHeads
from mwa_lightning.tasks.losses.functions import classification_loss, gather_rows, global_batch, several_processes


class Pairs(NamedTuple):
    """Images and their texts: vision tokens (b, k, d_v), token ids (b, n), masks (b, n), image ids (b,).

    The ids of tokens and images are int64; the mask is True on real tokens. `text_tokens` (b, n, d) are those of the
    texts alone, where the layers that see the image go on from them (ALBEF), or None where these begin with ids (BLIP).
    """

    image_tokens: Tensor
    ids: Tensor
    mask: Tensor
    image_ids: Tensor
    text_tokens: Tensor | None = None

    @property
    def texts(self) -> Tensor:
        """What the passes with an image begin with: tokens (b, n, d) or ids (b, n)."""
        return self.ids if self.text_tokens is None else self.text_tokens


class Similarity(NamedTuple):
    """Scaled scores of own images with candidate texts (b, c), and of own texts with candidate images (b, c)."""

    image_to_text: Tensor
    text_to_image: Tensor


def matching_loss(
    backbone: FusionEncoder,
    heads: FusionRetrievalHeads,
    *,
    own: Pairs,
    candidates: Pairs,
    similarity: Similarity,
) -> Tensor:
    """The cross-entropy of matching over the own pairs, and one wrong partner for each image and each text.

    The mean over the processes is the loss of the global batch; no gradient flows through the similarity. The arguments
    are those of `matching_logits`.
    """
    logits, labels = matching_logits(backbone, heads, own=own, candidates=candidates, similarity=similarity)
    return classification_loss(logits, labels, label_smoothing=0.0)


def matching_logits(
    backbone: FusionEncoder,
    heads: FusionRetrievalHeads,
    *,
    own: Pairs,
    candidates: Pairs,
    similarity: Similarity,
) -> tuple[Tensor, Tensor]:
    """Logits (p, 2), fp32, of right and wrong pairs, and whether they match (p,), int64.

    Wrong partners are drawn from the candidates by how well they seem to fit; where all of these are of the image there
    are none.

    Args:
        backbone: Fuses texts with images.
        heads: Have the matching head.
        own: The b pairs of this process.
        candidates: The c pairs that wrong partners come from: the same, or `gather_pairs` of them.
        similarity: How well they seem to fit.
    """
    others = own.image_ids[:, None] != candidates.image_ids[None]
    rows = others.any(dim=1).nonzero().squeeze(1)
    wrong_text = hard_partners(similarity.image_to_text[rows], others[rows])
    wrong_image = hard_partners(similarity.text_to_image[rows], others[rows])
    longest = max(own.ids.shape[1], candidates.ids.shape[1])
    texts, mask = _padded(own.texts, longest), _padded(own.mask, longest)
    other_texts, other_mask = _padded(candidates.texts, longest), _padded(candidates.mask, longest)
    # Right pairs, then each text with a wrong image, then each image with a wrong text.
    images = torch.cat([own.image_tokens, candidates.image_tokens[wrong_image], own.image_tokens[rows]])
    texts = torch.cat([texts, texts[rows], other_texts[wrong_text]])
    masks = torch.cat([mask, mask[rows], other_mask[wrong_text]])
    labels = torch.cat([own.ids.new_ones(len(own.ids)), own.ids.new_zeros(2 * len(rows))])
    fuse = backbone.fuse if own.text_tokens is None else backbone.fuse_encoded
    return heads.match(fuse([images], texts, masks)), labels


def gather_pairs(own: Pairs, shares: Sequence[int] | None = None) -> Pairs:
    """The pairs of all processes in rank order; gradients of the tokens flow back to where they are from.

    `shares` is as in `contrastive_loss`.
    """
    if not several_processes():
        return own
    most = torch.tensor(own.ids.shape[1], device=own.ids.device)
    distributed.all_reduce(most, op=distributed.ReduceOp.MAX)
    longest = int(most)
    texts = gather_rows(torch.stack([_padded(own.ids, longest), _padded(own.mask, longest).long()], dim=1), shares)
    image_tokens, image_ids, _, _ = global_batch(own.image_tokens, own.image_ids, shares)
    text_tokens = own.text_tokens
    if text_tokens is not None:
        text_tokens, _, _, _ = global_batch(_padded(text_tokens, longest), own.image_ids, shares)
    return Pairs(image_tokens, texts[:, 0], texts[:, 1].bool(), image_ids, text_tokens)


@torch.no_grad()
def hard_partners(scores: Tensor, allowed: Tensor) -> Tensor:
    """Draw one allowed column (r,) for each row of scores (r, c), by the softmax over the allowed ones of the row.

    Scores that are not finite count as 0: the loss, which has them too, tells of them.
    """
    if not len(scores):
        return torch.zeros(0, dtype=torch.int64, device=scores.device)
    known = torch.nan_to_num(scores.float(), nan=0.0, posinf=0.0, neginf=0.0)
    return torch.multinomial(known.masked_fill(~allowed, -torch.inf).softmax(dim=1), 1).squeeze(1)


def _padded(rows: Tensor, length: int) -> Tensor:
    """Rows (b, n, ...) filled up with zeros to (b, length, ...)."""
    return functional.pad(rows, (*(0, 0) * (rows.ndim - 2), 0, length - rows.shape[1]))
