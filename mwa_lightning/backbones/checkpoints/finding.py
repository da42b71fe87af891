"""Finding a model in whatever a training script saved: by the tensors that a kind of file has, not by what is around.

A container is a dict or list in the file, a prefix is what stands before all names of a model in one dict. Both may
come in any nesting: `{"state_dict": {"model.clip.visual.conv1.weight": ...}}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mwa_lightning.backbones.checkpoints.file_format import FileFormat, State
from mwa_lightning.errors import CheckpointError, shorten

# What DDP, torch.compile, FSDP, activation checkpointing and Fabric put into names, wherever they wrap a module.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})

# Of several models in a file the one of the first of these names is meant, the last being the file's own: BEiT-3's own
# rule, and that of timm and Lightning, which put the moving average beside it.
USUAL = ("model", "module", "state_dict", "")


class Found(NamedTuple):
    """A model in a file: where it is, its kind, its tensors by the kind's names, and what else is in its dict."""

    name: str
    form: FileFormat
    state: State
    beside: tuple[str, ...]


def find_models(content: object, formats: Sequence[FileFormat]) -> list[Found]:
    """All models of these kinds in what a file holds, in its order."""
    return [found for path, table in tables(content) for found in _in_table(path, table, formats)]


def choose(models: Sequence[Found], key: str | None, *, origin: str) -> Found:
    """The one that `key` names, the only one, or the one of a usual name.

    Raises CheckpointError if there is none, or if it takes the user to say which.
    """
    names = [model.name for model in models]
    if key is not None:
        for model in models:
            if model.name == key:
                return model
        there = ", ".join(name or "(the file itself)" for name in names) or "none"
        raise CheckpointError(f"{origin}: backbone.checkpoint_key={key} names no model in it; it has: {there}")
    different = [model for number, model in enumerate(models) if not any(_equal(model, m) for m in models[:number])]
    for usual in USUAL if len(different) > 1 else ():
        for model in models:
            if model.name == usual:
                return model
    if len(different) > 1:
        raise CheckpointError(
            f"{origin}: holds several models, {shorten(names)}; say which by backbone.checkpoint_key={names[0]}"
        )
    return models[0]


def tables(content: object) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dict with tensors by name in what a file holds, and where it is; other things in these are left out."""
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [("", content)]
    while waiting:
        path, node = waiting.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Mapping):
            table = {key: value for key, value in node.items() if isinstance(key, str) and isinstance(value, Tensor)}
            if table:
                yield path, table
            inner = list(node.items())
        elif isinstance(node, list | tuple):
            inner = list(enumerate(node))
        else:
            continue
        waiting += [
            (f"{path}.{key}".removeprefix("."), value)
            for key, value in inner
            if isinstance(value, Mapping | list | tuple)
        ]


def unwrapped(table: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the names of wrappers; as they are where two would have the same name then."""
    names = [".".join(part for part in key.split(".") if part not in WRAPPERS) for key in table]
    return dict(zip(names, table.values(), strict=True)) if len(set(names)) == len(names) else dict(table)


def _in_table(path: str, table: Mapping[str, Tensor], formats: Sequence[FileFormat]) -> Iterator[Found]:
    """The models in one dict."""
    state = unwrapped(table)
    anchors = {form.anchor for form in formats}
    prefixes = sorted(
        {key.removesuffix(anchor) for key in state for anchor in anchors if key == anchor or key.endswith(f".{anchor}")}
    )
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in prefixes}
    rest = []
    for key, tensor in state.items():
        # Of a prefix within another one, the inner one's.
        owner = max((prefix for prefix in prefixes if key.startswith(prefix)), key=len, default=None)
        if owner is None:
            rest.append(key)
        else:
            parts[owner][key.removeprefix(owner)] = tensor
    for prefix, part in parts.items():
        form = next((form for form in formats if form.recognises(part)), None)
        if form is not None:
            yield Found(f"{path}.{prefix}".strip("."), form, part, tuple(rest))


def _equal(one: Found, other: Found) -> bool:
    return one.state.keys() == other.state.keys() and all(
        tensor is other.state[key] or (not tensor.is_meta and torch.equal(tensor, other.state[key]))
        for key, tensor in one.state.items()
    )
