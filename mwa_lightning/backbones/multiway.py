"""BEiT-3: a Multiway transformer for images, texts and both in one sequence.

Source: Wang et al., "Image as a Foreign Language" (arXiv 2208.10442); microsoft/unilm beit3 and torchscale 0.2.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mwa_lightning.backbones.base import Backbone, Family
from mwa_lightning.backbones.blocks import Block, Routed, Segments, SequenceMask
from mwa_lightning.backbones.sites import Stream

# Rows 0 and 1 of both position tables are unused: the official code counts positions from 2, as Fairseq does.
FIRST_POSITION = 2


class VisionEmbedding(nn.Module):
    """Patches of an image, a CLS token before them, and learned positions."""

    def __init__(self, *, width: int, patch_size: int, grid: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        # Of masked image modelling only: the official files carry it, adaptation never uses it.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(FIRST_POSITION + 1 + grid**2, width))

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (b, 3, s, s) to tokens (b, 1 + grid^2, d)."""
        patches = self.projection(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.to(patches.dtype).expand(patches.shape[0], -1, -1), patches], dim=1)
        return tokens + self.positions[FIRST_POSITION:]


class TextEmbedding(nn.Module):
    """Word pieces and learned positions; padding is zero."""

    def __init__(self, *, width: int, vocabulary_size: int, positions: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary_size, width)
        nn.init.normal_(self.tokens.weight, std=width**-0.5)
        self.positions = nn.Parameter(torch.randn(positions, width))

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Map ids (b, n) and their mask (b, n), True on real tokens, to tokens (b, n, d)."""
        tokens = self.tokens(ids) + self.positions[FIRST_POSITION : FIRST_POSITION + ids.shape[1]]
        return tokens if mask is None else tokens * mask.unsqueeze(-1).to(tokens.dtype)


class Multiway(Backbone):
    """BEiT-3 without heads: image-only, text-only and fused.

    Weights come from a checkpoint (`mwa_lightning.backbones.checkpoints`); as constructed they are random, drawn as
    the official code does. Raises ConfigError if the patch size does not divide the image size.
    """

    family: ClassVar[Family] = "multiway"
    streams: tuple[Stream, ...] = ("vision", "text", "fusion")
    joint_streams: ClassVar[frozenset[Stream]] = frozenset({"fusion"})
    unreachable: frozenset[str] = frozenset({"vision_embedding.mask_token"})
    no_weight_decay: frozenset[str] = frozenset(
        {"vision_embedding.cls_token", "vision_embedding.positions", "text_embedding.positions"}
    )

    def __init__(
        self,
        *,
        name: str,
        width: int,
        depth: int,
        heads: int,
        ffn_width: int,
        patch_size: int,
        image_size: int,
        vocabulary_size: int,
        text_positions: int = 1024,
        max_text_length: int = 64,
        drop_path: float = 0.0,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__(
            name=name,
            patch_size=patch_size,
            image_size=image_size,
            vocabulary_size=vocabulary_size,
            text_positions=text_positions - FIRST_POSITION,
            max_text_length=max_text_length,
            image_mean=image_mean,
            image_std=image_std,
        )
        self.width = width
        self.depth = depth
        self.vision_embedding = VisionEmbedding(width=width, patch_size=patch_size, grid=image_size // patch_size)
        self.text_embedding = TextEmbedding(width=width, vocabulary_size=vocabulary_size, positions=text_positions)
        experts: tuple[Stream, ...] = ("vision", "text")
        self.blocks = nn.ModuleList(
            Block(width=width, heads=heads, ffn_width=ffn_width, streams=experts, drop_path=rate, sub_norm=True)
            for rate in np.linspace(0.0, drop_path, depth).tolist()
        )
        self.final_norm = Routed(experts, lambda: nn.LayerNorm(width, eps=1e-5))

    def layers(self, stream: Stream) -> Sequence[tuple[int, Block]]:
        """All blocks, whatever the stream."""
        return [(layer, block) for layer, block in enumerate(self.blocks) if isinstance(block, Block)]

    @property
    def embeddings(self) -> Sequence[nn.Module]:
        """Those of images and of texts."""
        return self.vision_embedding, self.text_embedding

    def layers_above(self, parameter_name: str) -> int:
        """How many layers stand above a parameter; above the embeddings, all and one more, as in the official code."""
        if "embedding" in parameter_name:
            return self.depth + 1
        if parameter_name.startswith("blocks."):
            return self.depth - int(parameter_name.split(".")[1])
        return 0

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images (b, 3, s, s), uint8 or normalised, as tokens (b, 1 + patches, d); the first is the CLS."""
        return self._run({"vision": self.vision_embedding(self.normalize(images))}, None)["vision"]

    def encode_text(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Encode ids (b, n), int64, with mask (b, n), True on real tokens, as tokens (b, n, d); the first is `<s>`."""
        return self._run({"text": self.text_embedding(ids, mask)}, mask)["text"]

    def fuse(self, images: Tensor, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Encode images and texts as one sequence; returns vision tokens (b, 1 + patches, d), text tokens (b, n, d)."""
        segments: Segments = {
            "vision": self.vision_embedding(self.normalize(images)),
            "text": self.text_embedding(ids, mask),
        }
        fused = self._run(segments, mask)
        return fused["vision"], fused["text"]

    def _run(self, segments: Segments, text_mask: Tensor | None) -> Segments:
        mask = SequenceMask.of(segments, {"vision": None, "text": text_mask})
        for block in self.blocks:
            segments = block(segments, mask)
        return self.final_norm.each(segments)
