"""Heads of the tasks: what turns a backbone's tokens into what the loss needs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

# The official initial value: a temperature of 0.07.
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)


class RetrievalHeads(nn.Module):
    """Two linear heads over the pooled token, and the logarithm of the scale of the logits.

    The names of the parameters are those of the official retrieval files, mapped: `vision.weight` (d, d),
    `text.weight` (d, d), `logit_scale` ().
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.width = width
        self.vision = nn.Linear(width, width, bias=False)
        self.text = nn.Linear(width, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        for head in (self.vision, self.text):
            # The bounds are absolute and equal to the deviation, as in the official code.
            nn.init.trunc_normal_(head.weight, std=0.02, a=-0.02, b=0.02)

    def embed_image(self, tokens: Tensor) -> Tensor:
        """Map vision tokens (b, n_img, d) to embeddings (b, d) of unit length, fp32."""
        return _unit_length(self.vision, tokens)

    def embed_text(self, tokens: Tensor) -> Tensor:
        """Map text tokens (b, n_txt, d) to embeddings (b, d) of unit length, fp32."""
        return _unit_length(self.text, tokens)


def _unit_length(head: nn.Linear, tokens: Tensor) -> Tensor:
    """Head and L2 norm of the first token, in fp32 also under autocast."""
    with torch.autocast(device_type=tokens.device.type, enabled=False):
        projected = head(tokens[:, 0].to(head.weight.dtype))
        return functional.normalize(projected.float(), dim=-1)
