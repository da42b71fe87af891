"""CLIP and SigLIP 2: two transformers, one for images and one for texts, that meet in the loss only.

Sources: Radford et al. (arXiv 2103.00020) and openai/CLIP; Tschannen et al., "SigLIP 2" (arXiv 2502.14786), in its form
of fixed resolution. What pools the tokens and projects them belongs to the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mwa_lightning.backbones.base import Backbone, Family
from mwa_lightning.backbones.blocks import ActivationName, Block, SequenceMask
from mwa_lightning.backbones.sites import Stream
from mwa_lightning.errors import ConfigError

Form = Literal["clip", "siglip"]

# What is usual for each form, where neither a configuration nor the files of the weights say it.
USUAL: dict[Form, dict[str, Any]] = {
    "clip": {
        "activation": "quick_gelu",
        "norm_epsilon": 1e-5,
        "image_size": 224,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resize": "crop",
        "interpolation": "bicubic",
    },
    "siglip": {
        "activation": "gelu_tanh",
        "norm_epsilon": 1e-6,
        "image_size": 224,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resize": "stretch",
        "interpolation": "bilinear",
    },
}


class ImageEmbedding(nn.Module):
    """Patches of an image with learned positions; for CLIP behind a CLS token, normed, and without a bias."""

    def __init__(self, *, width: int, patch_size: int, grid: int, norm_epsilon: float, form: Form) -> None:
        super().__init__()
        clip = form == "clip"
        self.projection = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=not clip)
        self.cls_token = nn.Parameter(torch.randn(width) * width**-0.5) if clip else None
        self.positions = nn.Parameter(torch.randn(grid**2 + clip, width) * width**-0.5)
        self.norm = nn.LayerNorm(width, eps=norm_epsilon) if clip else None

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (b, 3, s, s) to tokens (b, n, d): of the patches, for CLIP one more before them."""
        tokens = self.projection(images).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.to(tokens.dtype).expand(tokens.shape[0], 1, -1), tokens], dim=1)
        tokens = tokens + self.positions
        return tokens if self.norm is None else self.norm(tokens)


class TextEmbedding(nn.Module):
    """Word pieces and learned positions."""

    def __init__(self, *, width: int, vocabulary_size: int, positions: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary_size, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.positions = nn.Parameter(torch.randn(positions, width) * 0.01)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (b, n) to tokens (b, n, d)."""
        return self.tokens(ids) + self.positions[: ids.shape[1]]


class Tower(nn.Module):
    """The transformer of one stream: embedding, blocks, final norm."""

    def __init__(
        self,
        embedding: nn.Module,
        *,
        stream: Stream,
        width: int,
        depth: int,
        drop_path: float,
        norm_epsilon: float,
        **options: Any,
    ) -> None:
        super().__init__()
        self.stream = stream
        self.embedding = embedding
        self.blocks = nn.ModuleList(
            Block(width=width, streams=(stream,), drop_path=rate, norm_epsilon=norm_epsilon, **options)
            for rate in np.linspace(0.0, drop_path, depth).tolist()
        )
        self.final_norm = nn.LayerNorm(width, eps=norm_epsilon)

    def forward(self, entering: Tensor, mask: Tensor | None) -> Tensor:
        """Map what the embedding takes to tokens (b, n, d); mask (b, n), True on real tokens, or None for all."""
        segments = {self.stream: self.embedding(entering)}
        sequence_mask = SequenceMask.of(segments, {self.stream: mask})
        for block in self.blocks:
            segments = block(segments, sequence_mask)
        return self.final_norm(segments[self.stream])


class DualEncoder(Backbone):
    """CLIP or SigLIP 2 without heads; streams `vision` and `text`, each with widths and depths of its own.

    `form="clip"`: a CLS token and a norm before the blocks of images; a text token attends to itself and those before
    it. `form="siglip"`: neither; a text attends to all its tokens, padding included, so every text has
    `max_text_length` tokens, and patches need not fill an image (384 px have 27 x 27 of 14 px, as upstream).
    `embedding_width` is that of the space in which the heads let both meet (for SigLIP 2 the width of vision).
    `drop_path` is the highest rate of stochastic depth. What is None is as usual for the form (`USUAL`). As constructed
    the weights are random.

    Raises ConfigError if the form is unknown, or patches or texts do not fit.
    """

    family: ClassVar[Family] = "dual"
    streams: tuple[Stream, ...] = ("vision", "text")
    no_weight_decay: frozenset[str] = frozenset(
        {"vision.embedding.cls_token", "vision.embedding.positions", "text.embedding.positions"}
    )

    def __init__(
        self,
        *,
        name: str,
        form: Form,
        vision_width: int,
        vision_depth: int,
        vision_heads: int,
        vision_ffn_width: int,
        text_width: int,
        text_depth: int,
        text_heads: int,
        text_ffn_width: int,
        embedding_width: int,
        patch_size: int,
        vocabulary_size: int,
        text_positions: int,
        max_text_length: int,
        image_size: int | None = None,
        activation: ActivationName | None = None,
        norm_epsilon: float | None = None,
        drop_path: float = 0.0,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ) -> None:
        if form not in get_args(Form):
            raise ConfigError(f"backbone.form={form}: choose one of {', '.join(get_args(Form))}")
        usual = USUAL[form]
        image_size = image_size or usual["image_size"]
        activation = activation or usual["activation"]
        norm_epsilon = norm_epsilon or usual["norm_epsilon"]
        super().__init__(
            name=name,
            patch_size=patch_size,
            image_size=image_size,
            vocabulary_size=vocabulary_size,
            text_positions=text_positions,
            max_text_length=max_text_length,
            image_mean=image_mean or usual["image_mean"],
            image_std=image_std or usual["image_std"],
            leaves_rest=form == "siglip",
        )
        if form == "siglip" and max_text_length != text_positions:
            raise ConfigError(
                f"backbone.max_text_length={max_text_length}: {name} attends to its padding, so every text has "
                f"{text_positions} tokens; take that number"
            )
        if form == "siglip" and embedding_width != vision_width:
            raise ConfigError(
                f"backbone.embedding_width={embedding_width}: {name} does not project what it pools of an image; "
                f"take its vision_width, {vision_width}"
            )
        self.form: Form = form
        self.vision_width = vision_width
        self.vision_heads = vision_heads
        self.vision_ffn_width = vision_ffn_width
        self.text_width = text_width
        self.embedding_width = embedding_width
        self.activation: ActivationName = activation
        self.norm_epsilon = norm_epsilon
        self.vision = Tower(
            ImageEmbedding(
                width=vision_width,
                patch_size=patch_size,
                grid=image_size // patch_size,
                norm_epsilon=norm_epsilon,
                form=form,
            ),
            stream="vision",
            width=vision_width,
            depth=vision_depth,
            heads=vision_heads,
            ffn_width=vision_ffn_width,
            drop_path=drop_path,
            norm_epsilon=norm_epsilon,
            activation=activation,
        )
        self.text = Tower(
            TextEmbedding(width=text_width, vocabulary_size=vocabulary_size, positions=text_positions),
            stream="text",
            width=text_width,
            depth=text_depth,
            heads=text_heads,
            ffn_width=text_ffn_width,
            drop_path=drop_path,
            norm_epsilon=norm_epsilon,
            activation=activation,
            causal=form == "clip",
        )

    @property
    def vision_depth(self) -> int:
        """Blocks that images run through."""
        return len(self.vision.blocks)

    @property
    def text_depth(self) -> int:
        """Blocks that texts run through."""
        return len(self.text.blocks)

    def layers(self, stream: Stream) -> Sequence[tuple[int, Block]]:
        """The blocks of the stream's transformer; there are none of `fusion`."""
        towers = {"vision": self.vision, "text": self.text}
        blocks = towers[stream].blocks if stream in towers else ()
        return [(layer, block) for layer, block in enumerate(blocks) if isinstance(block, Block)]

    @property
    def embeddings(self) -> Sequence[nn.Module]:
        """Those of images and of texts."""
        return self.vision.embedding, self.text.embedding

    def layers_above(self, parameter_name: str) -> int:
        """How many layers of its own transformer stand above a parameter; above the embedding, all and one more."""
        stream, part, *rest = parameter_name.split(".")
        depth = self.vision_depth if stream == "vision" else self.text_depth
        if part == "embedding":
            return depth + 1
        return depth - int(rest[0]) if part == "blocks" else 0

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images (b, 3, s, s), uint8 or normalised, as tokens (b, k, d); the first of CLIP's is the CLS."""
        return self.vision(self.normalize(images), None)

    def encode_text(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Encode ids (b, n), int64, with mask (b, n), True on real tokens, as tokens (b, n, d).

        SigLIP does not look at the mask. Raises ConfigError if its texts are not padded to `max_text_length`.
        """
        if self.form == "clip":
            return self.text(ids, mask)
        if ids.shape[1] != self.max_text_length:
            raise ConfigError(
                f"{self.name} attends to its padding: pad texts to {self.max_text_length} tokens, not {ids.shape[1]}; "
                "the tokenizer that was loaded with it does"
            )
        return self.text(ids, None)
