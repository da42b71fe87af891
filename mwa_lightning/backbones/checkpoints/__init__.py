"""Checkpoint files: reading them safely, and bringing their names to ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mwa_lightning.backbones.base import Backbone, Family
from mwa_lightning.backbones.checkpoints.albef import ALBEF, ALBEF_PAIR
from mwa_lightning.backbones.checkpoints.assets import locate
from mwa_lightning.backbones.checkpoints.beit3 import BEIT3, official_state
from mwa_lightning.backbones.checkpoints.blip import BLIP, BLIP_PAIR, TRANSFORMERS_BLIP
from mwa_lightning.backbones.checkpoints.clip import OPEN_CLIP, TRANSFORMERS_CLIP
from mwa_lightning.backbones.checkpoints.key_map import apply_key_map
from mwa_lightning.backbones.checkpoints.loading import FileFormat, LoadReport, State, fill_backbone
from mwa_lightning.backbones.checkpoints.reading import read_state
from mwa_lightning.backbones.checkpoints.siglip import SIGLIP
from mwa_lightning.errors import CheckpointError

__all__ = ["LoadReport", "load_backbone", "locate", "map_part", "official_state", "read_state"]

# The kinds of files of each family of backbones, in the order in which they are tried.
FORMATS: dict[Family, tuple[FileFormat, ...]] = {
    "multiway": (BEIT3,),
    "fusion": (BLIP_PAIR, BLIP, TRANSFORMERS_BLIP, ALBEF_PAIR, ALBEF),
    "dual": (TRANSFORMERS_CLIP, OPEN_CLIP, SIGLIP),
}


def load_backbone(backbone: Backbone, heads: nn.Module | None, reference: str | Path) -> LoadReport:
    """`fill_backbone` from any kind of file of the backbone's family."""
    return fill_backbone(backbone, heads, reference, formats=FORMATS[backbone.family])


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
