"""What is known of each kind of file that weights come in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mwa_lightning.backbones.checkpoints.key_map import KeyMap

State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """One kind of file that weights come in.

    `anchor` is a tensor that every file of the kind has: what stands before its name stands before all names of the
    model. `recognises` tells from the keys whether a file is of this kind; `sizes` reads its sizes as a text to compare
    with that of the backbone, `backbone_sizes`; `settings` reads them by the keys of the backbone's configuration,
    where that may leave them to the file. `key_map` maps its names to ours (of the backbone, and `heads.*`).
    `positions` has the vision position tables by our names, with the number of rows before the grid. `instead` names
    where the same weights are in another kind, for a file that does not fit.
    """

    name: str
    anchor: str
    recognises: Callable[[State], bool]
    sizes: Callable[[State], str]
    backbone_sizes: Callable[[Any], str]
    key_map: Callable[[Any], KeyMap]
    positions: Mapping[str, int]
    settings: Callable[[State], dict[str, Any]] | None = None
    instead: str = ""

    @property
    def kind(self) -> str:
        """The name without what tells variants of the kind apart."""
        return self.name.partition(" (")[0]
