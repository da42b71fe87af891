"""Fusion encoders, BLIP and ALBEF: a vision transformer, and BERT layers in which text attends to the image.

Sources: Li et al., "BLIP" (arXiv 2201.12086) and salesforce/BLIP, models/{vit,med,nlvr_encoder}.py; Li et al., "Align
before Fuse" (arXiv 2107.07651) and salesforce/ALBEF, models/{vit,xbert}.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mwa_lightning.backbones.base import Backbone, Family
from mwa_lightning.backbones.blocks import Block, CrossAttention, Memory, SequenceMask
from mwa_lightning.backbones.sites import Stream
from mwa_lightning.errors import ConfigError

VISION_EPSILON = 1e-6
TEXT_EPSILON = 1e-12


class VisionEmbedding(nn.Module):
    """Patches of an image, a CLS token before them, and learned positions."""

    def __init__(self, *, width: int, patch_size: int, grid: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1 + grid**2, width))
        for parameter in (self.cls_token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (b, 3, s, s) to tokens (b, 1 + grid^2, d)."""
        patches = self.projection(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.to(patches.dtype).expand(patches.shape[0], -1, -1), patches], dim=1)
        return tokens + self.positions


class TextEmbedding(nn.Module):
    """Word pieces and learned positions under a norm, as in BERT.

    With `token_types` there is a table of that many rows for the segments of a text. A caption is one segment, so the
    first row is added to every token; it is zero until a file fills it.
    """

    def __init__(self, *, width: int, vocabulary_size: int, positions: int, token_types: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Parameter(torch.empty(positions, width))
        self.token_types = nn.Parameter(torch.zeros(token_types, width)) if token_types else None
        self.norm = nn.LayerNorm(width, eps=TEXT_EPSILON)
        for table in (self.tokens.weight, self.positions):
            nn.init.normal_(table, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (b, n) to tokens (b, n, d)."""
        tokens = self.tokens(ids) + self.positions[: ids.shape[1]]
        return self.norm(tokens if self.token_types is None else tokens + self.token_types[0])


class FusionEncoder(Backbone):
    """BLIP or ALBEF without heads: image, text, and text that sees the image.

    With `fusion_layers` (ALBEF) the first `text_layers` layers read the text alone, and those above them attend to the
    image too. Without (BLIP) every text layer does both: alone, or with a cross-attention where there is an image; the
    first token is then replaced by that of row `encoder_token` (from the end where negative).

    In the form for two images (`pair`, of NLVR2) ALBEF has twice the fusion layers: the even ones attend to the first
    image, the odd ones to the second, and neighbours share the projections to keys and values. BLIP has two
    cross-attentions a layer; their outputs are averaged below layer `merge_from`, and from there on merged by a linear
    layer.

    `drop_path` is that of the vision transformer. Raises ConfigError if the patch size does not divide the image size,
    or texts may be longer than the table of positions.
    """

    family: ClassVar[Family] = "fusion"
    streams: tuple[Stream, ...] = ("vision", "text", "fusion")
    no_weight_decay: frozenset[str] = frozenset(
        {"vision_embedding.cls_token", "vision_embedding.positions", "text_embedding.positions"}
    )

    def __init__(
        self,
        *,
        name: str,
        vision_width: int,
        vision_depth: int,
        vision_heads: int,
        vision_ffn_width: int,
        patch_size: int,
        image_size: int,
        text_width: int,
        text_heads: int,
        text_ffn_width: int,
        text_layers: int,
        fusion_layers: int,
        vocabulary_size: int,
        text_positions: int = 512,
        max_text_length: int = 35,
        token_types: int = 0,
        encoder_token: int | None = None,
        pair: bool = False,
        merge_from: int = 6,
        embedding_width: int = 256,
        drop_path: float = 0.0,
        image_mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        image_std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
    ) -> None:
        super().__init__(
            name=name,
            patch_size=patch_size,
            image_size=image_size,
            vocabulary_size=vocabulary_size,
            text_positions=text_positions,
            max_text_length=max_text_length,
            image_mean=image_mean,
            image_std=image_std,
        )
        self.vision_width = vision_width
        self.vision_depth = vision_depth
        self.text_width = text_width
        self.text_layers = text_layers
        self.fusion_layers = fusion_layers
        self.embedding_width = embedding_width
        self.pair = pair
        self.merge_from = merge_from
        self.encoder_token = encoder_token
        if encoder_token is not None and encoder_token < 0:
            self.encoder_token = vocabulary_size + encoder_token

        self.vision_embedding = VisionEmbedding(
            width=vision_width, patch_size=patch_size, grid=image_size // patch_size
        )
        self.vision_blocks = nn.ModuleList(
            Block(
                width=vision_width,
                heads=vision_heads,
                ffn_width=vision_ffn_width,
                streams=("vision",),
                drop_path=rate,
                norm_epsilon=VISION_EPSILON,
            )
            for rate in np.linspace(0.0, drop_path, vision_depth).tolist()
        )
        self.vision_norm = nn.LayerNorm(vision_width, eps=VISION_EPSILON)

        def cross_attention(images: Sequence[int], *, merge: bool = False) -> CrossAttention:
            return CrossAttention(
                width=text_width, memory_width=vision_width, heads=text_heads, images=images, merge=merge
            )

        def text_block(stream: Stream, crossing: CrossAttention | None) -> Block:
            return Block(
                width=text_width,
                heads=text_heads,
                ffn_width=text_ffn_width,
                streams=(stream,),
                norm_epsilon=TEXT_EPSILON,
                norm_first=False,
                cross_attention=crossing,
            )

        self.text_embedding = TextEmbedding(
            width=text_width, vocabulary_size=vocabulary_size, positions=text_positions, token_types=token_types
        )
        both = (0, 1) if pair else (0,)
        blocks = [
            text_block("text", None if fusion_layers else cross_attention(both, merge=pair and layer >= merge_from))
            for layer in range(text_layers)
        ]
        for _ in range(fusion_layers):
            crossings = [cross_attention((image,)) for image in both]
            for crossing in crossings[1:]:
                crossing.key, crossing.value = crossings[0].key, crossings[0].value
            blocks += [text_block("fusion", crossing) for crossing in crossings]
        self.text_blocks = nn.ModuleList(blocks)

    @property
    def images(self) -> int:
        """How many images the fusion layers attend to."""
        return 2 if self.pair else 1

    @property
    def first_fusion_layer(self) -> int:
        """The lowest text layer with cross-attention."""
        return self.text_layers if self.fusion_layers else 0

    def layers(self, stream: Stream) -> Sequence[tuple[int, Block]]:
        """The blocks of a stream by their official numbers; text and fusion layers are numbered together."""
        blocks = list(enumerate(self.vision_blocks if stream == "vision" else self.text_blocks))
        if stream == "text":
            blocks = blocks[: self.text_layers]
        elif stream == "fusion":
            blocks = blocks[self.first_fusion_layer :]
        return [(layer, block) for layer, block in blocks if isinstance(block, Block)]

    @property
    def embeddings(self) -> Sequence[nn.Module]:
        """Those of images and of texts."""
        return self.vision_embedding, self.text_embedding

    def one_image_layer(self, layer: int) -> int:
        """The number in the form for one image of the text or fusion layer whose weights a layer begins with."""
        above = layer - self.first_fusion_layer
        return layer if self.fusion_layers == 0 or above < 0 else self.first_fusion_layer + above // self.images

    def one_image_name(self, name: str) -> str | None:
        """The parameter of the form for one image that a parameter begins as; None for those of merging layers."""
        part, _, rest = name.partition(".")
        if part != "text_blocks" or not self.pair:
            return name
        layer, _, rest = rest.partition(".")
        if rest.startswith("cross_attention."):
            projection, *_, kind = rest.split(".")[1:]
            if projection == "merge":
                return None
            rest = f"cross_attention.{projection}.0.{kind}"
        return f"text_blocks.{self.one_image_layer(int(layer))}.{rest}"

    def layers_above(self, parameter_name: str) -> int:
        """How many layers of its own encoder stand above a parameter; above the embeddings, all and one more."""
        above = len(self.vision_blocks) if parameter_name.startswith("vision_") else len(self.text_blocks)
        part, _, rest = parameter_name.partition(".")
        if part.endswith("_embedding"):
            return above + 1
        return above - int(rest.split(".")[0]) if part.endswith("_blocks") else 0

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images (b, 3, s, s), uint8 or normalised, as tokens (b, 1 + patches, d_v); the first is the CLS."""
        tokens = self.vision_embedding(self.normalize(images))
        return self.vision_norm(self._run("vision", tokens, None))

    def encode_text(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Encode ids (b, n), int64, with mask (b, n), True on real tokens, as tokens (b, n, d); the first is `[CLS]`.

        They have not seen an image.
        """
        return self._run("text", self.text_embedding(ids), mask)

    def fuse(self, memory: Memory, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Encode texts, as in `encode_text`, that attend to images: tokens (b, n, d).

        `memory` has the vision tokens (b, k, d_v) of one image, or in the form for two images those of each; it is
        (1, k, d_v) where all texts see the same image. Raises ConfigError if it has another number of images.
        """
        if self.encoder_token is not None:
            ids = torch.cat([torch.full_like(ids[:, :1], self.encoder_token), ids[:, 1:]], dim=1)
        tokens = self.text_embedding(ids)
        if self.fusion_layers:
            # These layers do not attend to the memory; their slots are told of it.
            tokens = self._run("text", tokens, mask, memory)
        return self.fuse_encoded(memory, tokens, mask)

    def fuse_encoded(self, memory: Memory, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Run the fusion layers alone, as in `fuse`, on tokens (b, n, d) of `encode_text`: for ALBEF's arrangement."""
        if len(memory) != self.images:
            other = f"; set backbone.pair={str(not self.pair).lower()}" if len(memory) == 3 - self.images else ""
            raise ConfigError(
                f"{self.name} fuses a text with {self.images} image{'s' if self.pair else ''}, not with {len(memory)}"
                f"{other}"
            )
        return self._run("fusion", tokens, mask, memory)

    def _run(self, stream: Stream, tokens: Tensor, mask: Tensor | None, memory: Memory = ()) -> Tensor:
        segments = {stream: tokens}
        sequence_mask = SequenceMask.of(segments, {stream: mask})
        for _, block in self.layers(stream):
            segments = block(segments, sequence_mask, memory)
        return segments[stream]
