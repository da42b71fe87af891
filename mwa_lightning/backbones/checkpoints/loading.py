"""Filling a backbone, and heads, from one of the kinds of files of its family."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mwa_lightning.backbones.base import Backbone
from mwa_lightning.backbones.checkpoints.file_format import State
from mwa_lightning.backbones.checkpoints.finding import Found
from mwa_lightning.backbones.checkpoints.fingerprint import fingerprint
from mwa_lightning.backbones.checkpoints.key_map import apply_key_map
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.backbones.positions import grid_of, interpolate_positions
from mwa_lightning.errors import CheckpointError, shorten


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of a checkpoint: the file's keys used and dropped, our parameters that stay as initialised.

    `interpolated` is the side of the grid of positions before and after, or None where it stayed.
    """

    origin: str
    used: tuple[str, ...]
    dropped: tuple[str, ...]
    new: tuple[str, ...]
    interpolated: tuple[int, int] | None
    fingerprint: str

    def __str__(self) -> str:
        parts = [f"{self.origin}: {len(self.used)} tensors"]
        if self.interpolated is not None:
            before, after = self.interpolated
            parts.append(f"positions interpolated from {before}x{before} to {after}x{after}")
        if self.dropped:
            parts.append(f"not needed: {shorten(self.dropped)}")
        if self.new:
            parts.append(f"not in the file, freshly drawn: {shorten(self.new)}")
        return "; ".join(parts)


def fill_backbone(backbone: Backbone, heads: nn.Module | None, found: Found, *, origin: str) -> LoadReport:
    """Fill a backbone, and heads where there are any, from a model in a file; sets the backbone's fingerprint.

    The vision positions are interpolated to the backbone's resolution, and every tensor is cast to the type
    of the parameter (official pretrained files are fp16). Heads that the file does not have stay as they are
    and are named in the report. Raises CheckpointError, with the model unchanged, if the file is of other sizes, or
    its keys do not fit.
    """
    state, form = found.state, found.form
    has, wanted = form.sizes(state), form.backbone_sizes(backbone)
    if has != wanted:
        another = "or the backbone of this one"
        if form.settings is not None:
            another = f"or choose backbone={has.split()[0]}, which reads the sizes from the file"
            if has.startswith("siglip"):
                another += " (SigLIP 1 and SigLIP 2 differ in the vocabulary), with the tokenizer of these weights"
        raise CheckpointError(
            f"{origin}: has {has}, but {backbone.name} is configured with {wanted}; give a checkpoint of "
            f"{backbone.name}, {another}"
        )
    targets = parameters_to_fill(backbone, heads)
    shapes: dict[str, torch.Size | None] = {name: parameter.shape for name, parameter in targets.items()}
    shapes |= {name: None for name in form.positions if name in shapes}
    try:
        mapped = apply_key_map(state, form.key_map(backbone), shapes, origin=origin)
    except CheckpointError as error:
        raise CheckpointError("; ".join(filter(None, (str(error), form.instead)))) from error

    own = {name: tensor for name, tensor in mapped.tensors.items() if not name.startswith("heads.")}
    identity, one_image = fingerprint(own), _one_image_fingerprint(backbone, own)
    interpolated = None
    for name, rows_before in form.positions.items():
        table = mapped.tensors[name]
        try:
            before = grid_of(table, rows_before=rows_before)
            after = grid_of(targets[name], rows_before=rows_before)
        except CheckpointError as error:
            raise CheckpointError(f"{origin}: {error}") from error
        mapped.tensors[name] = interpolate_positions(table, after, rows_before=rows_before)
        if before != after:
            interpolated = (before, after)
    with torch.no_grad():
        for name, tensor in mapped.tensors.items():
            targets[name].copy_(tensor)
    backbone.fingerprint, backbone.one_image_fingerprint = identity, one_image
    return LoadReport(
        origin=origin,
        used=tuple(key for key in state if key not in mapped.dropped),
        dropped=(*mapped.dropped, *found.beside),
        new=tuple(mapped.new),
        interpolated=interpolated,
        fingerprint=identity,
    )


def parameters_to_fill(backbone: Backbone, heads: nn.Module | None) -> dict[str, nn.Parameter]:
    """All parameters to fill, the heads' as `heads.*`."""
    parameters = dict(backbone.named_parameters())
    if heads is not None:
        parameters |= {f"heads.{name}": parameter for name, parameter in heads.named_parameters()}
    return parameters


def _one_image_fingerprint(backbone: Backbone, tensors: State) -> str | None:
    """The fingerprint that the form for one image has with the same file.

    None where the backbone has one form only or is in that for one image, and where the file is of two images: there
    what begins as one tensor has become two.
    """
    if not isinstance(backbone, FusionEncoder) or not backbone.pair:
        return None
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        theirs = backbone.one_image_name(name)
        if theirs is not None and not torch.equal(found.setdefault(theirs, tensor), tensor):
            return None
    return fingerprint(found)
