"""Image-text matching: does a text belong to its image? The wrong ones that look right teach it.

Source: Li et al., "Align before Fuse" (arXiv 2107.07651), section 3.2; salesforce/BLIP, models/blip_retrieval.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.tasks.heads import FusionRetrievalHeads
from mwa_lightning.tasks.losses import classification_loss


def matching_loss(
    backbone: FusionEncoder,
    heads: FusionRetrievalHeads,
    *,
    image_tokens: Tensor,
    ids: Tensor,
    mask: Tensor,
    similarity: Tensor,
    image_ids: Tensor,
) -> Tensor:
    """The cross-entropy of matching over the pairs of a batch, and one wrong partner for each image and each text.

    Wrong partners come from this process's batch, drawn by how well they seem to fit; where all pairs of it are of one
    image there are none. The mean over the processes is the loss of the global batch.

    Args:
        backbone: Fuses texts with images.
        heads: Have the matching head.
        image_tokens: Vision tokens (b, k, d_v); row i belongs to text i.
        ids: Token ids (b, n), int64.
        mask: (b, n), True on real tokens.
        similarity: Scaled scores of images (rows) with texts (b, b); no gradient flows through them.
        image_ids: (b,), int64: other pairs with the same image are no wrong partners.
    """
    others = image_ids[:, None] != image_ids[None]
    rows = others.any(dim=1).nonzero().squeeze(1)
    wrong_text = hard_partners(similarity[rows], others[rows])
    wrong_image = hard_partners(similarity.T[rows], others[rows])
    # Right pairs, then each text with a wrong image, then each image with a wrong text.
    images = torch.cat([image_tokens, image_tokens[wrong_image], image_tokens[rows]])
    texts = torch.cat([ids, ids[rows], ids[wrong_text]])
    masks = torch.cat([mask, mask[rows], mask[wrong_text]])
    labels = torch.cat([ids.new_ones(len(ids)), ids.new_zeros(2 * len(rows))])
    return classification_loss(heads.match(backbone.fuse([images], texts, masks)), labels, label_smoothing=0.0)


@torch.no_grad()
def hard_partners(scores: Tensor, allowed: Tensor) -> Tensor:
    """Draw one allowed column (r,) for each row of scores (r, b), by the softmax over the allowed ones of the row.

    Scores that are not finite count as 0: the loss, which has them too, tells of them.
    """
    if not len(scores):
        return torch.zeros(0, dtype=torch.int64, device=scores.device)
    known = torch.nan_to_num(scores.float(), nan=0.0, posinf=0.0, neginf=0.0)
    return torch.multinomial(known.masked_fill(~allowed, -torch.inf).softmax(dim=1), 1).squeeze(1)
