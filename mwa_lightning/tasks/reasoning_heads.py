"""Heads for statements about images: how a backbone of each family sees them, and a score for each class."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mwa_lightning.backbones.base import Backbone, Family
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.backbones.sites import Stream
from mwa_lightning.errors import ConfigError
from mwa_lightning.tasks.heads import EmbeddingHeads, retrieval_heads


class StatementShape(NamedTuple):
    """What a statement is about and what may be said of it: the number of images, and the names of the classes."""

    images: int
    classes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.images} image{'' if self.images == 1 else 's'} and the classes {', '.join(self.classes)}"


class ReasoningHeads(nn.Module):
    """Base of the heads for statements.

    Attributes:
        streams: The streams that `forward` runs, for the adapter to be put on.
        shape: What it was made for.
    """

    streams: tuple[Stream, ...]

    def __init__(self, *, shape: StatementShape) -> None:
        super().__init__()
        self.shape = shape

    @property
    def pretrained(self) -> nn.Module:
        """The part that files of the backbone may hold."""
        return self

    @property
    def unused(self) -> tuple[nn.Parameter, ...]:
        """Parameters that `forward` does not reach: they stay frozen."""
        return ()

    @abstractmethod
    def forward(self, backbone: Backbone, images: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Map images (b, k, 3, s, s), ids (b, n) and mask (b, n), True on real tokens, to logits (b, classes)."""


class TwoLayerHeads(ReasoningHeads):
    """Base of the heads that end in norm, linear layer, norm, GELU, linear layer, with BEiT-3's names for these.

    `initial_scale` is a factor on the initial weights, whose deviation is otherwise 0.02 cut at one deviation.
    """

    def __init__(self, *, joined: int, hidden: int, initial_scale: float, shape: StatementShape) -> None:
        super().__init__(shape=shape)
        self.norm1 = nn.LayerNorm(joined)
        self.dense1 = nn.Linear(joined, hidden)
        self.norm2 = nn.LayerNorm(hidden)
        self.dense2 = nn.Linear(hidden, len(shape.classes))
        for layer in (self.dense1, self.dense2):
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.02, b=0.02)
            nn.init.zeros_(layer.bias)
            with torch.no_grad():
                layer.weight.mul_(initial_scale)

    def classify(self, joined: Tensor) -> Tensor:
        """Map what is known of a sample (b, joined) to logits (b, classes)."""
        hidden: Tensor = functional.gelu(self.norm2(self.dense1(self.norm1(joined))))
        logits: Tensor = self.dense2(hidden)
        return logits


class MultiwayReasoningHeads(TwoLayerHeads):
    """BEiT-3's form: the statement is fused with each image in a pass of its own; an MLP joins the passes.

    The MLP reads, image after image, the CLS token and the text's `<s>`. Names and initial values are the official ones
    (microsoft/unilm beit3, `BEiT3ForVisualReasoning`): `norm1` (2kd), `dense1` (2d, 2kd), `norm2` (2d), `dense2`
    (classes, 2d), the linear layers a thousandth of their usual size. So at k = 2 official NLVR2 files fit.
    """

    streams: tuple[Stream, ...] = ("vision", "text", "fusion")

    def __init__(self, *, width: int, shape: StatementShape) -> None:
        super().__init__(joined=2 * shape.images * width, hidden=2 * width, initial_scale=0.001, shape=shape)

    def forward(self, backbone: Backbone, images: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Map images (b, k, 3, s, s), ids (b, n) and mask (b, n), True on real tokens, to logits (b, classes)."""
        assert isinstance(backbone, Multiway)
        samples, count = images.shape[:2]
        # A sample's passes lie side by side: (b * k, ...).
        repeated = None if mask is None else mask.repeat_interleave(count, dim=0)
        vision, text = backbone.fuse(images.flatten(0, 1), ids.repeat_interleave(count, dim=0), repeated)
        return self.classify(torch.cat([vision[:, 0], text[:, 0]], dim=1).reshape(samples, self.norm1.weight.numel()))


class DualReasoningHeads(TwoLayerHeads):
    """For encoders in which image and text never meet: an MLP over their embeddings and the products of these.

    The MLP reads the embeddings of the k images, that of the text, and each image's times the text's, element by
    element: (2k + 1) times the width. `embedding` has the backbone's own projections, pretrained; the scale of their
    logits is not used.
    """

    streams: tuple[Stream, ...] = ("vision", "text")

    def __init__(self, *, embedding: EmbeddingHeads, shape: StatementShape) -> None:
        joined = (2 * shape.images + 1) * embedding.width
        super().__init__(joined=joined, hidden=2 * embedding.width, initial_scale=1.0, shape=shape)
        self.embedding = embedding

    @property
    def pretrained(self) -> nn.Module:
        """The projections."""
        return self.embedding

    @property
    def unused(self) -> tuple[nn.Parameter, ...]:
        """Scale (and bias) of the logits of retrieval."""
        return tuple(
            parameter for name, parameter in self.embedding.named_parameters() if name in ("logit_scale", "logit_bias")
        )

    def forward(self, backbone: Backbone, images: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Map images (b, k, 3, s, s), ids (b, n) and mask (b, n), True on real tokens, to logits (b, classes)."""
        samples, count = images.shape[:2]
        pictures = self.embedding.embed_image(backbone.encode_image(images.flatten(0, 1)))
        pictures = pictures.reshape(samples, count, self.embedding.width)
        text = self.embedding.embed_text(backbone.encode_text(ids, mask), mask).unsqueeze(1)
        joined = torch.cat([pictures, text, pictures * text], dim=1).flatten(1)
        return self.classify(joined.to(self.norm1.weight.dtype))  # embeddings are fp32, whatever the model is


class FusionReasoningHeads(ReasoningHeads):
    """BLIP's and ALBEF's form: one text pass that attends to the image, or to both; an MLP over its first token.

    `hidden` (d, d) and `output` (classes, d) with a ReLU between them are the official `cls_head`. Raises ConfigError
    if the backbone's form is for another number of images.
    """

    def __init__(self, *, backbone: FusionEncoder, shape: StatementShape) -> None:
        super().__init__(shape=shape)
        if shape.images != backbone.images:
            mend = f"set backbone.pair={'true' if shape.images == 2 else 'false'}"
            if shape.images > 2:
                mend = "it can see one or two, choose a BEiT-3, CLIP or SigLIP backbone"
            raise ConfigError(
                f"{backbone.name} sees {backbone.images} image{'' if backbone.images == 1 else 's'} at a time, a "
                f"statement here has {shape.images}: {mend}"
            )
        # Where the layers that see the image are those that read texts alone, no text is read alone here.
        self.streams = ("vision", "text", "fusion") if backbone.fusion_layers else ("vision", "fusion")
        self.hidden = nn.Linear(backbone.text_width, backbone.text_width)
        self.output = nn.Linear(backbone.text_width, len(shape.classes))

    def forward(self, backbone: Backbone, images: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Map images (b, k, 3, s, s), ids (b, n) and mask (b, n), True on real tokens, to logits (b, classes)."""
        assert isinstance(backbone, FusionEncoder)
        seen = backbone.encode_image(images.transpose(0, 1).flatten(0, 1)).chunk(images.shape[1])
        logits: Tensor = self.output(functional.relu(self.hidden(backbone.fuse(seen, ids, mask)[:, 0])))
        return logits


def reasoning_heads(backbone: Backbone, shape: StatementShape) -> ReasoningHeads:
    """The heads for statements that belong to a backbone, with fresh weights.

    Raises ConfigError if there are none for its family.
    """
    make = _REASONING_HEADS.get(backbone.family)
    if make is None:
        raise ConfigError(
            f"backbone={backbone.name}: there is no head for statements about images on this family "
            f"({backbone.family}); choose a backbone of {' or '.join(_REASONING_HEADS)}, or task=retrieval"
        )
    return make(backbone, shape)


def _multiway(backbone: Backbone, shape: StatementShape) -> ReasoningHeads:
    assert isinstance(backbone, Multiway)
    return MultiwayReasoningHeads(width=backbone.width, shape=shape)


def _dual(backbone: Backbone, shape: StatementShape) -> ReasoningHeads:
    return DualReasoningHeads(embedding=retrieval_heads(backbone), shape=shape)


def _fusion(backbone: Backbone, shape: StatementShape) -> ReasoningHeads:
    assert isinstance(backbone, FusionEncoder)
    return FusionReasoningHeads(backbone=backbone, shape=shape)


_REASONING_HEADS: dict[Family, Callable[[Backbone, StatementShape], ReasoningHeads]] = {
    "multiway": _multiway,
    "dual": _dual,
    "fusion": _fusion,
}
