"""Checkpoint files: reading them safely, and bringing their names to ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mwa_lightning.backbones.base import Backbone, Family
from mwa_lightning.backbones.checkpoints.assets import locate
from mwa_lightning.backbones.checkpoints.families.albef import ALBEF, ALBEF_PAIR
from mwa_lightning.backbones.checkpoints.families.beit3 import BEIT3, official_state
from mwa_lightning.backbones.checkpoints.families.blip import BLIP, BLIP_PAIR, TRANSFORMERS_BLIP
from mwa_lightning.backbones.checkpoints.families.clip import OPEN_CLIP, OPEN_CLIP_TEXT, TRANSFORMERS_CLIP
from mwa_lightning.backbones.checkpoints.families.siglip import OPEN_CLIP_SIGLIP, SIGLIP
from mwa_lightning.backbones.checkpoints.file_format import FileFormat, State
from mwa_lightning.backbones.checkpoints.finding import Found, choose, find_models, tables, unwrapped
from mwa_lightning.backbones.checkpoints.key_map import apply_key_map
from mwa_lightning.backbones.checkpoints.loading import LoadReport, fill_backbone
from mwa_lightning.backbones.checkpoints.other_models import named
from mwa_lightning.backbones.checkpoints.reading import read_content, read_state, weights_file
from mwa_lightning.errors import CheckpointError, shorten

__all__ = [
    "LoadReport",
    "load_backbone",
    "locate",
    "map_part",
    "official_state",
    "read_model",
    "read_state",
    "weights_file",
]

# The kinds of files of each family of backbones, in the order in which they are tried.
FORMATS: dict[Family, tuple[FileFormat, ...]] = {
    "multiway": (BEIT3,),
    "fusion": (BLIP_PAIR, BLIP, TRANSFORMERS_BLIP, ALBEF_PAIR, ALBEF),
    "dual": (TRANSFORMERS_CLIP, OPEN_CLIP, OPEN_CLIP_TEXT, SIGLIP, OPEN_CLIP_SIGLIP),
}

# A backbone for each kind, for messages.
EXAMPLES = {
    "BEiT-3": "beit3_base",
    "BLIP": "blip_base",
    "ALBEF": "albef_base",
    "CLIP": "clip",
    "OpenCLIP": "clip",
    "SigLIP": "siglip",
    "OpenCLIP's SigLIP": "siglip",
}


def load_backbone(
    backbone: Backbone, heads: nn.Module | None, reference: str | Path, *, key: str | None = None
) -> LoadReport:
    """`fill_backbone` from any kind of file of the backbone's family; `key` says which model, where it holds several.

    Raises CheckpointError, with the model unchanged, if the file cannot be read, holds no model of the family, or does
    not fit.
    """
    return fill_backbone(backbone, heads, read_model(reference, backbone.family, key=key), origin=str(reference))


def read_model(reference: str | Path, family: Family, *, key: str | None = None, shapes_only: bool = False) -> Found:
    """The model of a family in a file, wherever in it.

    With `shapes_only` its tensors have no values, and of several models that could be meant it is the first. Raises
    CheckpointError if there is none, or if it takes the user to say which (`key`).
    """
    content = read_content(reference, shapes_only=shapes_only)
    models = find_models(content, FORMATS[family])
    if models:
        return models[0] if shapes_only and key is None else choose(models, key, origin=str(reference))
    state: dict[str, Tensor] = {}
    for _, table in tables(content):
        state |= unwrapped(table)
    if not state:
        raise CheckpointError(f"{reference}: holds no tensors by name; give a checkpoint with a state dict")
    kinds = " or ".join(dict.fromkeys(form.kind for form in FORMATS[family]))
    raise CheckpointError(
        f"{reference}: not a {kinds} checkpoint of images and texts; {_other(content, state)} (it has "
        f"{shorten(state, 3)})"
    )


def _other(content: object, state: State) -> str:
    """What a file is that holds no model of the family, and what to do."""
    for formats in FORMATS.values():
        if models := find_models(content, formats):
            kind = models[0].form.kind
            return f"it is of {kind}: choose a backbone of that kind, such as {EXAMPLES[kind]}"
    return named(state) or "give an official file"


def map_part(backbone: Backbone, state: State, shapes: Mapping[str, torch.Size], *, origin: str) -> dict[str, Tensor]:
    """Some parameters only: those of `shapes`, by our names (the heads' as `heads.*`), from a whole file or a part.

    Raises CheckpointError if what is there does not fit a file of the backbone's family.
    """
    forms = FORMATS[backbone.family]
    problem: CheckpointError | None = None
    # A part does not show its kind: the first that has all of the parameters is it.
    for form in [form for form in forms if form.recognises(state)] or forms:
        try:
            return apply_key_map(state, form.key_map(backbone), dict(shapes), origin=origin).tensors
        except CheckpointError as error:
            problem = problem or error
    assert problem is not None
    raise problem
