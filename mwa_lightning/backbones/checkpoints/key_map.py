"""Total key maps: every key of a file is used or named as dropped, every parameter filled or named as new."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mwa_lightning.errors import CheckpointError, shorten


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """How the names of one kind of file belong to ours.

    `names` leads from the file's name to ours; keys that match one of the patterns `dropped` are known and
    not needed; of each group of our names in `optional`, a file has all or none.
    """

    names: Mapping[str, str]
    dropped: Sequence[re.Pattern[str]] = ()
    optional: Sequence[frozenset[str]] = ()


class Mapped(NamedTuple):
    """A file's tensors by our names, its keys that went unused, and our names that it does not fill."""

    tensors: dict[str, Tensor]
    dropped: list[str]
    new: list[str]


def apply_key_map(
    state: Mapping[str, Tensor], key_map: KeyMap, shapes: Mapping[str, torch.Size | None], *, origin: str
) -> Mapped:
    """Rename a file's tensors to our parameters.

    `shapes` has all of our parameters; None stands for a shape that the caller sees to. `origin` names the
    file in messages. Raises CheckpointError, one line that lists the keys, if the file lacks keys, has keys
    that are not known, or has tensors of another shape.
    """
    tensors: dict[str, Tensor] = {}
    dropped: list[str] = []
    unknown: list[str] = []
    misshapen: list[str] = []
    for key, tensor in state.items():
        name = key_map.names.get(key)
        if name is None or name not in shapes:
            known = name is not None or any(pattern.fullmatch(key) for pattern in key_map.dropped)
            (dropped if known else unknown).append(key)
            continue
        shape = shapes[name]
        if shape is not None and tensor.shape != shape:
            misshapen.append(f"{key} {tuple(tensor.shape)} for {tuple(shape)}")
        tensors[name] = tensor

    new = [name for name in shapes if name not in tensors]
    may_be_new = {name for group in key_map.optional if group.isdisjoint(tensors) for name in group}
    official = {name: key for key, name in key_map.names.items()}
    missing = [official.get(name, name) for name in new if name not in may_be_new]
    problems = [("missing", missing), ("not known", unknown), ("of another shape", misshapen)]
    if any(names for _, names in problems):
        detail = "; ".join(f"{what}: {shorten(names)}" for what, names in problems if names)
        raise CheckpointError(f"{origin}: does not fit ({detail}); give a checkpoint of this very model")
    return Mapped(tensors, dropped, new)
