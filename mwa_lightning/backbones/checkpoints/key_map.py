"""Total key maps: every key of a file is used or named as dropped, every parameter filled or named as new."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mwa_lightning.errors import CheckpointError, shorten


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """How the names of one kind of file belong to ours.

    `names` leads from the file's name to ours; to several of ours where the file holds them as one tensor, one after
    the other along its first dimension (query, key and value). Several names of a file may lead to one of ours: a
    module that is shared and saved under each of its names; the tensors must be equal then. Tensors named in
    `transposed` are transposed first, those in `converted` go through the function there; those in `repeated` go whole
    to each of our names. Keys that match one of the patterns `dropped` are known and not needed. Of each group of our
    names in `optional`, a file has all or none. The groups in `task_shaped` are optional too, and one with a tensor of
    another shape counts as not in the file: it is of another number of classes or images.
    """

    names: Mapping[str, str | tuple[str, ...]]
    dropped: Sequence[re.Pattern[str]] = ()
    optional: Sequence[frozenset[str]] = ()
    transposed: frozenset[str] = frozenset()
    repeated: frozenset[str] = frozenset()
    converted: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    task_shaped: Sequence[frozenset[str]] = ()

    def parts(self, key: str) -> tuple[str, ...]:
        """Our names of what a key of the file holds; none if it is not known."""
        ours = self.names.get(key, ())
        return (ours,) if isinstance(ours, str) else ours


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
    that are not known, has tensors of another shape, or several that should be equal and are not.
    """
    tensors: dict[str, Tensor] = {}
    dropped: list[str] = []
    unknown: list[str] = []
    misshapen: list[str] = []
    unequal: list[str] = []
    foreign = _of_another_task(state, key_map, shapes)
    for key, whole in state.items():
        names = key_map.parts(key)
        if not any(name in shapes for name in names) or foreign.intersection(names):
            known = bool(names) or any(pattern.fullmatch(key) for pattern in key_map.dropped)
            (dropped if known else unknown).append(key)
            continue
        if key not in key_map.repeated and whole.ndim and whole.shape[0] % len(names):
            misshapen.append(f"{key} {tuple(whole.shape)} for {len(names)} in one")
            continue
        tensor = whole.T if key in key_map.transposed else whole
        if key in key_map.converted:
            tensor = key_map.converted[key](tensor)
        whole_each = len(names) == 1 or key in key_map.repeated
        for name, part in zip(names, (tensor,) * len(names) if whole_each else tensor.chunk(len(names)), strict=True):
            shape = shapes[name]
            if shape is not None and shape.numel() == part.numel() == 1:
                part = part.reshape(shape)  # a single number: some files have it in brackets, some not
            if shape is not None and part.shape != shape:
                misshapen.append(f"{key} {tuple(part.shape)} for {tuple(shape)}")
            if name in tensors and not torch.equal(tensors[name], part):
                unequal.append(key)
            tensors[name] = part

    new = [name for name in shapes if name not in tensors]
    may_be_new = {
        name for group in (*key_map.optional, *key_map.task_shaped) if group.isdisjoint(tensors) for name in group
    }
    official = {name: key for key in key_map.names for name in key_map.parts(key)}
    missing = list(dict.fromkeys(official.get(name, name) for name in new if name not in may_be_new))
    problems = [
        ("missing", missing),
        ("not known", unknown),
        ("of another shape", misshapen),
        ("not equal to its other copies", unequal),
    ]
    if any(names for _, names in problems):
        detail = "; ".join(f"{what}: {shorten(names)}" for what, names in problems if names)
        raise CheckpointError(f"{origin}: does not fit ({detail}); give a checkpoint of this very model")
    return Mapped(tensors, dropped, new)


def _of_another_task(
    state: Mapping[str, Tensor], key_map: KeyMap, shapes: Mapping[str, torch.Size | None]
) -> frozenset[str]:
    """Our names in the groups of `task_shaped` of which the file has a tensor of another shape."""
    official = {name: key for key in key_map.names for name in key_map.parts(key)}
    return frozenset().union(
        *(
            group
            for group in key_map.task_shaped
            if any(
                name in shapes and official[name] in state and state[official[name]].shape != shapes[name]
                for name in group
            )
        )
    )
