"""`adapter.safetensors`: what was trained and nothing else, with where it belongs in the metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mwa_lightning.adapters.files.foreign import described_as, is_released
from mwa_lightning.adapters.files.metadata import FORMAT, read_header, tensor_names
from mwa_lightning.adapters.files.released_modex import holds_modex, modex_options, modex_trained
from mwa_lightning.adapters.files.released_mwa import read_released, released_options
from mwa_lightning.adapters.modex import ModeX
from mwa_lightning.adapters.mwa import MultiWayAdapter
from mwa_lightning.backbones.base import Backbone
from mwa_lightning.backbones.checkpoints import read_state
from mwa_lightning.errors import CheckpointError, shorten
from mwa_lightning.sharded_tensors import laid_out_like
from mwa_lightning.system.regular_files import open_file
from mwa_lightning.system.tensor_files import write_tensors

_AS_TRAINED = "take the backbone, the adapter and its settings that it was trained with"
_DOWN = re.compile(r"adapter\..*?_(\d+)(?:_\w+)?\.(?:bottleneck\.)?down\.weight$")


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name, detached; of sharded ones this process's part (see `sharded_tensors`)."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_adapter(path: Path, state: Mapping[str, Tensor], *, metadata: Mapping[str, Any]) -> None:
    """Write trained tensors with metadata: `method`, `backbone`, `fingerprint`, `version`, `config` (of the adapter).

    Values that are not strings are written as JSON. The file is written to a temporary name and renamed.
    """
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    write_tensors(path, state, metadata={"format": FORMAT, **text})


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of an adapter file. Raises CheckpointError if it is missing or none of ours."""
    return read_header(path).metadata


def method_in(path: Path) -> tuple[str | None, dict[str, Any]]:
    """The class of the method that an adapter file is of, and the settings that it tells.

    A file of ours has both in its metadata, as whoever wrote it says; one of the authors' code shows them in its
    tensors, but for the scale and the temperature. Raises CheckpointError for a file that is no adapter.
    """
    if is_ours(path):
        header = read_header(path)
        return header.target, header.settings
    state = read_state(path)
    if not is_released(state):
        raise CheckpointError(f"{path}: {described_as(state)}")
    kind: type[nn.Module] = MultiWayAdapter
    options: Mapping[str, Any]
    if holds_modex(state):
        kind, options = ModeX, modex_options(state, origin=path)
    else:
        options = released_options(read_released(path))
    return f"{kind.__module__}.{kind.__qualname__}", dict(options)


def load_adapter(path: Path, model: nn.Module, *, fingerprint: str) -> None:
    """Fill the model's trainable parameters from an adapter file; the key sets and shapes must be equal.

    The file is ours (safetensors), or a `.pth` of the released code of MultiWay-Adapter or ModeX, which its content
    tells; the latter may lack heads, and then those of the model stay. Raises CheckpointError if the file is missing,
    none of these, was trained on a backbone with another fingerprint, or holds other tensors than those that train
    here.
    """
    if not is_ours(path):
        trained = trained_state(model)
        heads = {name: tensor for name, tensor in trained.items() if name.startswith("heads.")}
        fill_trainable(model, heads | _read_pth(path, model, trained), origin=str(path))
        return
    fill_trainable(model, _read_for(path, fingerprint)[0], origin=str(path))


def load_fitting(
    path: Path, model: nn.Module, heads: nn.Module, *, fingerprint: str, sources: Mapping[str, str] | None = None
) -> str:
    """Fill what an adapter file of another task has of the trainable parameters; returns what became of the rest.

    `heads` are those of `model` that may be in the file under the names of its own heads. `sources` has for each other
    parameter its name in the file, where a file of another form of the backbone has one; without it the names are the
    same. Raises CheckpointError, with the model unchanged, if the file cannot be read, is of another backbone, has
    other widths, or nothing in it fits.
    """
    state, metadata = _read_for(path, fingerprint)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    ours = {f"heads.{name}": (f"heads.{name}", value) for name, value in heads.named_parameters()}
    ours = {name: pair for name, pair in ours.items() if pair[1].requires_grad}
    for name, value in trained.items():
        source = name if sources is None else sources.get(name)
        if source is not None and not name.startswith("heads."):
            ours[name] = source, value
    known = {name: pair for name, pair in ours.items() if pair[0] in state}
    fitting = {name: pair for name, pair in known.items() if state[pair[0]].shape == pair[1].shape}
    wider = [name for name in known if name not in fitting and not name.startswith("heads.")]
    if wider or not fitting:
        problem = f"{shorten(wider)} of another shape" if wider else "nothing in it has a place here"
        raise CheckpointError(f"{path}: does not fit this adapter ({problem}); {_AS_TRAINED}")
    with torch.no_grad():
        for source, value in fitting.values():
            value.copy_(state[source])
    filled = {id(value) for _, value in fitting.values()}
    new = [name for name, value in trained.items() if id(value) not in filled]
    new.sort(key=lambda name: not name.startswith("heads."))
    used = {source for source, _ in fitting.values()}
    unused = [name for name in state if name not in used]
    parts = [f"{path}: of task={metadata.get('task')}, tensors of it that fit this one: {len(used)}"]
    for what, names in (("not needed", unused), ("new here", new)):
        if names:
            layers = dict.fromkeys(name.removesuffix(".weight").removesuffix(".bias") for name in names)
            parts.append(f"{what}: {shorten(layers, 8)}")
    return "; ".join(parts)


def is_ours(path: Path) -> bool:
    """Whether an adapter file is in our form, rather than one of the authors' code, whatever it is called.

    Where the content tells neither, and where there is no file, its name decides who shall say so. Raises
    CheckpointError for a file of torch that is called `.safetensors`, which could only be read under another name.
    """
    try:
        with open_file(path) as file:
            head = file.read(9)
    except OSError:
        head = b""
    if head[8:] == b"{":  # after the length of the header, which is JSON
        return not is_released(tensor_names(path) or ())
    named_so = path.suffix == ".safetensors"
    if head.startswith((b"PK", b"\x80")):  # a zip archive or a pickle: the two forms of torch
        if named_so:
            raise CheckpointError(f"{path}: a file of torch, not safetensors; rename it to {path.stem}.pth")
        return False
    return named_so


def fill_trainable(model: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Copy tensors into the trainable parameters of the same names.

    Raises CheckpointError, naming both lists, if the names or shapes are not the same; nothing is changed then.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = sorted(trainable.keys() - state.keys())
    unexpected = sorted(state.keys() - trainable.keys())
    misshapen = [
        f"{name} {tuple(state[name].shape)} for {tuple(trainable[name].shape)}"
        for name in sorted(trainable.keys() & state.keys())
        if state[name].shape != trainable[name].shape
    ]
    if missing or unexpected or misshapen:
        shapes = [{name: tuple(value.shape) for name, value in of.items()} for of in (state, trainable)]
        if size := _other_size(*shapes):
            raise CheckpointError(f"{origin}: {size}; give backbone= of that size, or an adapter of this one")
        problems = [("missing", missing), ("not expected", unexpected), ("of another shape", misshapen)]
        detail = "; ".join(f"{what}: {shorten(names)}" for what, names in problems if names)
        raise CheckpointError(f"{origin}: does not fit this adapter ({detail}); {_AS_TRAINED}")
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{origin}: {name} has values that are no finite fractions; give another file")
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(laid_out_like(state[name], parameter))


def _other_size(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """In what the models differ that two adapters are for, by the bottlenecks of both; empty if in nothing."""

    def size(name: str, shapes: Mapping[str, Any]) -> str:
        layers = 1 + max(int(matched[1]) for key in shapes if (matched := _DOWN.match(key)))
        return f"width {shapes[name][-1]} and {layers} layer{'' if layers == 1 else 's'}"

    other = (name for name in theirs if name in ours and _DOWN.match(name) and theirs[name][-1] != ours[name][-1])
    if (name := next(other, None)) is None:
        return ""
    return f"it is for a model of {size(name, theirs)}, and this one has {size(name, ours)}"


def _read_pth(path: Path, model: nn.Module, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a file of the authors' code has of the parameters that train."""
    content = read_state(path)
    if not holds_modex(content):
        return read_released(path)
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    return modex_trained(content, backbone, {name: tensor.shape for name, tensor in trained.items()}, origin=path)


def _read_for(path: Path, fingerprint: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata. Raises CheckpointError if they belong to a backbone with another fingerprint."""
    state, metadata = _read(path)
    if metadata["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{path}: trained on {metadata['backbone']} with weights {metadata['fingerprint'][:12]}, this backbone has "
            f"{fingerprint[:12]}; give the backbone.checkpoint that it was trained on"
        )
    return state, metadata


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    header = read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); copy it again") from error
    return state, header.metadata
