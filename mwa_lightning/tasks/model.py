"""A backbone, an adapter and heads as one model, and the accounts of what trains in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.backbones.base import Backbone
from mwa_lightning.backbones.sites import Stream
from mwa_lightning.errors import CheckpointError
from mwa_lightning.report.tables import PartRow
from mwa_lightning.tasks.heads import EmbeddingHeads
from mwa_lightning.tasks.inputs import MISSING, Missing, check_statements, checked_images, checked_texts
from mwa_lightning.tasks.reasoning_heads import ReasoningHeads, StatementShape

ResultT = TypeVar("ResultT")
Texts = Tensor | tuple[Tensor, Tensor | None]  # ids, or ids and mask as a tokenizer gives them


class AdaptedModel(nn.Module):
    """A backbone, an adapter on the streams that a task runs, and the heads of the task.

    The constructor attaches the adapter, so the backbone's weights are read before it. Frozen modules stay in
    eval mode whatever `train` is told. Raises ConfigError if the adapter needs sites that the backbone does
    not have.
    """

    def __init__(
        self, *, backbone: Backbone, adapter: AdapterMethod, heads: nn.Module, streams: Sequence[Stream]
    ) -> None:
        super().__init__()
        adapter.attach(backbone, heads, streams=streams)
        self.backbone = backbone
        self.adapter = adapter
        self.heads = heads
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Put what trains into `mode`, and all that is frozen into eval mode."""
        _set_mode(self, mode)
        return self

    def metadata(self) -> dict[str, Any]:
        """What an adapter file says of the data that the heads are made for; JSON."""
        return {}

    def check_trained_on(self, path: Path, *, images: int | None, classes: Sequence[str]) -> None:
        """Raise CheckpointError if an adapter file says that it was trained on data that the heads are not made for."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def run(self, work: Callable[..., ResultT], *inputs: Any) -> ResultT:
        """Call `work`, which uses the model or parts of it, with `inputs`.

        A sharded model has weights that can be computed with in here only; all processes then run the same blocks in
        the same order.
        """
        return work(*inputs)


class RetrievalModel(AdaptedModel):
    """Images and texts as embeddings of unit length in one space; the streams are those that the heads run."""

    heads: EmbeddingHeads

    def __init__(self, *, backbone: Backbone, adapter: AdapterMethod, heads: EmbeddingHeads) -> None:
        super().__init__(backbone=backbone, adapter=adapter, heads=heads, streams=heads.streams)

    def forward(self, images: Tensor, ids: Texts, mask: Tensor | Missing | None = MISSING) -> tuple[Tensor, Tensor]:
        """`encode_image` and `encode_text` of a batch."""
        return self.encode_image(images), self.encode_text(ids, mask)

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images (b, 3, s, s), uint8 or normalised, to embeddings (b, d) of unit length, fp32.

        Raises ConfigError, one line, if they are of another form.
        """
        return self.heads.embed_image(self.backbone.encode_image(checked_images(images, self.backbone)))

    def encode_text(self, ids: Texts, mask: Tensor | Missing | None = MISSING) -> Tensor:
        """Map ids (b, n), int64, with mask (b, n), True on real tokens, to unit embeddings (b, d), fp32.

        What the tokenizer gives, ids and mask, may stand for both. Raises ConfigError, one line, if they are of another
        form.
        """
        ids, real = checked_texts(ids, mask, self.backbone)
        return self.heads.embed_text(self.backbone.encode_text(ids, real), real)


class ReasoningModel(AdaptedModel):
    """Statements about k images each, as a score for each class. The streams are those that the heads run."""

    heads: ReasoningHeads

    def __init__(self, *, backbone: Backbone, adapter: AdapterMethod, heads: ReasoningHeads) -> None:
        super().__init__(backbone=backbone, adapter=adapter, heads=heads, streams=heads.streams)
        for parameter in heads.unused:
            parameter.requires_grad_(False)
        self.train()

    def metadata(self) -> dict[str, Any]:
        shape = self.heads.shape
        return {"images": shape.images, "classes": list(shape.classes)}

    def check_trained_on(self, path: Path, *, images: int | None, classes: Sequence[str]) -> None:
        if images is None:
            return
        trained, own = StatementShape(images, tuple(classes)), self.heads.shape
        if trained != own:
            raise CheckpointError(
                f"{path}: was trained on {trained}, and these statements have {own}; take data like its own, or set "
                f"data.classes=[{','.join(trained.classes)}]"
            )

    def forward(self, images: Tensor, ids: Texts, mask: Tensor | Missing | None = MISSING) -> Tensor:
        """Map images (b, k, 3, s, s), uint8 or normalised, ids (b, n) and mask (b, n) to logits (b, classes), fp32.

        Raises ConfigError, one line, if they are of another form.
        """
        images = checked_images(images, self.backbone, axes="b, k, 3, s, s")
        ids, real = checked_texts(ids, mask, self.backbone)
        check_statements(images, ids, each=self.heads.shape.images)
        return self.heads(self.backbone, images, ids, real).float()


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, by name: the one list for the optimizer, the checkpoint and the reported count."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def parameter_table(model: AdaptedModel) -> list[PartRow]:
    """One row for each part of backbone, adapter and heads; the shares add up to that of the model."""
    everything = sum(parameter.numel() for parameter in model.parameters())
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        row = counts.setdefault(".".join(name.split(".")[:2]), [0, 0, 0])
        row[0] += parameter.numel() if parameter.requires_grad else 0
        row[1] += parameter.numel()
        row[2] += parameter.numel() if name in model.adapter.declared_unused else 0
    return [
        PartRow(part, trainable, total, trainable / everything, unused)
        for part, (trainable, total, unused) in counts.items()
    ]


def parameter_figures(model: AdaptedModel) -> dict[str, float]:
    """`params/trainable` (heads included), `params/total`, `params/adapter_share`.

    The share is a fraction: parameters added by the adapter over those of the backbone.
    """
    backbone = sum(parameter.numel() for parameter in model.backbone.parameters())
    added = sum(parameter.numel() for parameter in model.adapter.parameters())
    return {
        "params/trainable": sum(parameter.numel() for parameter in trained_parameters(model).values()),
        "params/total": sum(parameter.numel() for parameter in model.parameters()),
        "params/adapter_share": added / backbone,
    }


def _set_mode(module: nn.Module, mode: bool) -> None:
    """`mode` for a module of which any parameter trains, and for those below it without any; else eval."""
    parameters = list(module.parameters())
    if parameters:
        mode = mode and any(parameter.requires_grad for parameter in parameters)
    module.training = mode
    for child in module.children():
        _set_mode(child, mode)
