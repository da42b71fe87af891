"""Heads of the tasks: what turns a backbone's tokens into what the loss needs."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mwa_lightning.backbones.base import Backbone, Family
from mwa_lightning.backbones.blocks import ActivationName, CrossAttention, FeedForward, initialize_linear
from mwa_lightning.backbones.dual import DualEncoder
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.backbones.sites import Stream
from mwa_lightning.errors import ConfigError

# The official initial values: a temperature of 0.07, and those of SigLIP's sigmoids.
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
SIGMOID_LOGIT_SCALE, SIGMOID_LOGIT_BIAS = math.log(10), -10.0


class EmbeddingHeads(nn.Module):
    """Base of the heads that bring images and texts into one space: pooling, projection, length 1.

    Attributes:
        width: Channels of the embeddings.
        logit_scale: The logarithm of the scale of the logits, of one element.
        logit_bias: What is added to them where the loss takes each pair for itself (one element), else None.
    """

    streams: tuple[Stream, ...] = ("vision", "text")
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_parameter("logit_bias", None)

    @abstractmethod
    def pool_image(self, tokens: Tensor) -> Tensor:
        """Map vision tokens (b, n_img, d) to one vector an image (b, d)."""

    @abstractmethod
    def pool_text(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Map text tokens (b, n_txt, d), mask (b, n_txt) True on real ones, to one vector a text (b, d)."""

    @abstractmethod
    def project_image(self, pooled: Tensor) -> Tensor:
        """Map pooled images (b, d) to the common space (b, width)."""

    @abstractmethod
    def project_text(self, pooled: Tensor) -> Tensor:
        """Map pooled texts (b, d) to the common space (b, width)."""

    def embed_image(self, tokens: Tensor) -> Tensor:
        """Map vision tokens (b, n_img, d) to embeddings (b, width) of unit length, fp32."""
        return self._unit_length(self.project_image, self.pool_image(tokens))

    def embed_text(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Map text tokens (b, n_txt, d), mask (b, n_txt) True on real ones, to unit embeddings (b, width), fp32."""
        return self._unit_length(self.project_text, self.pool_text(tokens, mask))

    def _unit_length(self, project: Callable[[Tensor], Tensor], pooled: Tensor) -> Tensor:
        """Projection and L2 norm of the pooled vectors, in fp32 also under autocast."""
        with torch.autocast(device_type=pooled.device.type, enabled=False):
            return functional.normalize(project(pooled.to(self.logit_scale.dtype)).float(), dim=-1)


class LinearHeads(EmbeddingHeads):
    """Base of those with a linear layer for each stream, over the first token where a subclass says nothing else."""

    vision: nn.Linear
    text: nn.Linear

    def pool_image(self, tokens: Tensor) -> Tensor:
        """The first token."""
        return tokens[:, 0]

    def pool_text(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The first token."""
        return tokens[:, 0]

    def project_image(self, pooled: Tensor) -> Tensor:
        """The vision head."""
        return self.vision(pooled)

    def project_text(self, pooled: Tensor) -> Tensor:
        """The text head."""
        return self.text(pooled)


class RetrievalHeads(LinearHeads):
    """BEiT-3's: two linear heads over the first token.

    The names of the parameters are those of the official retrieval files, mapped: `vision.weight` (d, d),
    `text.weight` (d, d), `logit_scale` ().
    """

    def __init__(self, *, width: int) -> None:
        super().__init__(width=width)
        self.vision = nn.Linear(width, width, bias=False)
        self.text = nn.Linear(width, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        for head in (self.vision, self.text):
            # The bounds are absolute and equal to the deviation, as in the official code.
            nn.init.trunc_normal_(head.weight, std=0.02, a=-0.02, b=0.02)


class FusionRetrievalHeads(LinearHeads):
    """BLIP's and ALBEF's: a linear layer with bias for each first token, and whether a text belongs to its image.

    The files' temperature is 1 / exp(logit_scale).
    """

    streams: tuple[Stream, ...] = ("vision", "text", "fusion")

    def __init__(self, *, vision_width: int, text_width: int, width: int) -> None:
        super().__init__(width=width)
        self.vision = initialize_linear(nn.Linear(vision_width, width))
        self.text = initialize_linear(nn.Linear(text_width, width))
        self.matching = initialize_linear(nn.Linear(text_width, 2))
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))

    def match(self, tokens: Tensor) -> Tensor:
        """Map text tokens that have seen an image (b, n_txt, d) to logits (b, 2), fp32: no match, match."""
        with torch.autocast(device_type=tokens.device.type, enabled=False):
            return self.matching(tokens[:, 0].to(self.matching.weight.dtype)).float()


class ClipHeads(LinearHeads):
    """CLIP's: the CLS token of an image, the last real token of a text, and a linear layer without bias for each."""

    def __init__(self, *, vision_width: int, text_width: int, width: int) -> None:
        super().__init__(width=width)
        self.vision = nn.Linear(vision_width, width, bias=False)
        self.text = nn.Linear(text_width, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        nn.init.normal_(self.vision.weight, std=vision_width**-0.5)
        nn.init.normal_(self.text.weight, std=text_width**-0.5)

    def pool_text(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The last real token of each text: it has seen the others."""
        if mask is None:
            return tokens[:, -1]
        last = (mask.sum(dim=1) - 1).clamp(min=0)
        return tokens[torch.arange(len(tokens), device=tokens.device), last]


class AttentionPooler(nn.Module):
    """One learned query that attends to all tokens, and a feed-forward network with a residual add.

    Source: google-research/big_vision, models/vit.py (`MAPHead`).
    """

    def __init__(
        self, *, width: int, heads: int, ffn_width: int, activation: ActivationName, norm_epsilon: float
    ) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.attention = CrossAttention(width=width, memory_width=width, heads=heads)
        self.norm = nn.LayerNorm(width, eps=norm_epsilon)
        self.ffn = FeedForward(width=width, hidden_width=ffn_width, norm_epsilon=norm_epsilon, activation=activation)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (b, n, d) to (b, d)."""
        # Contiguous: of a view without a stride, a linear layer makes the same product in another order of summation if
        # its weights train, and a frozen pooler would not give the bits of one that is about to be trained.
        query = self.probe.to(tokens.dtype).expand(tokens.shape[0], 1, -1).contiguous()
        attended = self.attention(query, [tokens])
        return (attended + self.ffn(self.norm(attended)))[:, 0]


class SiglipHeads(EmbeddingHeads):
    """SigLIP's: an attention pooler for images, a linear layer over the last of all tokens, real or not, for texts."""

    logit_bias: nn.Parameter

    def __init__(
        self,
        *,
        vision_width: int,
        vision_heads: int,
        vision_ffn_width: int,
        text_width: int,
        activation: ActivationName,
        norm_epsilon: float,
    ) -> None:
        super().__init__(width=vision_width)
        self.vision = AttentionPooler(
            width=vision_width,
            heads=vision_heads,
            ffn_width=vision_ffn_width,
            activation=activation,
            norm_epsilon=norm_epsilon,
        )
        self.text = nn.Linear(text_width, vision_width)
        nn.init.normal_(self.text.weight, std=text_width**-0.5)
        nn.init.zeros_(self.text.bias)
        self.logit_scale = nn.Parameter(torch.tensor(SIGMOID_LOGIT_SCALE))
        self.logit_bias = nn.Parameter(torch.tensor(SIGMOID_LOGIT_BIAS))

    def pool_image(self, tokens: Tensor) -> Tensor:
        """What the pooler attends to."""
        return self.vision(tokens)

    def pool_text(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The last token."""
        return tokens[:, -1]

    def project_image(self, pooled: Tensor) -> Tensor:
        """As it is: the pooler's space is the common one."""
        return pooled

    def project_text(self, pooled: Tensor) -> Tensor:
        """The projection of texts."""
        return self.text(pooled)


def retrieval_heads(backbone: Backbone) -> EmbeddingHeads:
    """The heads of retrieval that belong to a backbone, with fresh weights.

    Raises ConfigError if the backbone is in a form that has none.
    """
    return _RETRIEVAL_HEADS[backbone.family](backbone)


def _multiway_heads(backbone: Backbone) -> EmbeddingHeads:
    assert isinstance(backbone, Multiway)
    return RetrievalHeads(width=backbone.width)


def _dual_heads(backbone: Backbone) -> EmbeddingHeads:
    assert isinstance(backbone, DualEncoder)
    if backbone.form == "clip":
        return ClipHeads(
            vision_width=backbone.vision_width, text_width=backbone.text_width, width=backbone.embedding_width
        )
    return SiglipHeads(
        vision_width=backbone.vision_width,
        vision_heads=backbone.vision_heads,
        vision_ffn_width=backbone.vision_ffn_width,
        text_width=backbone.text_width,
        activation=backbone.activation,
        norm_epsilon=backbone.norm_epsilon,
    )


def _fusion_heads(backbone: Backbone) -> EmbeddingHeads:
    assert isinstance(backbone, FusionEncoder)
    if backbone.pair:
        raise ConfigError(
            f"{backbone.name} in its form for two images has no heads of retrieval: set backbone.pair=false"
        )
    return FusionRetrievalHeads(
        vision_width=backbone.vision_width, text_width=backbone.text_width, width=backbone.embedding_width
    )


_RETRIEVAL_HEADS: dict[Family, Callable[[Backbone], EmbeddingHeads]] = {
    "multiway": _multiway_heads,
    "dual": _dual_heads,
    "fusion": _fusion_heads,
}
