"""A checkpoint file as tensors by name, without running anything that the file brings along."""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mwa_lightning.backbones.checkpoints.assets import locate
from mwa_lightning.errors import CheckpointError, shorten
from mwa_lightning.regular_files import open_file

# The tensors are under the first of these that a file has, else the file is the bare dict: the official rule.
STATE_KEYS = ("model", "module")

# What official files carry beside tensors: the arguments of the run, with paths and numpy numbers among them.
# These hold data only. Both names of numpy's and pathlib's modules occur, by the versions that wrote the
# file. Paths become pure paths, which every operating system can make of any other's.
_SCALAR: Callable[..., Any] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    *(
        (pure, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for pure, names in (
            (pathlib.PurePosixPath, ("PosixPath", "PurePosixPath")),
            (pathlib.PureWindowsPath, ("WindowsPath", "PureWindowsPath")),
        )
        for name in names
    ),
    *((_SCALAR, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),
    np.dtype,
    *(type(np.dtype(code)) for code in "?bhilqBHILQefdgFDGSU"),
]

# What Hugging Face and OpenCLIP call their weights, the safest first; an index names the parts of a file in several.
_INDEX = ".index.json"
_IN_FOLDERS = (
    "model.safetensors",
    f"model.safetensors{_INDEX}",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    f"pytorch_model.bin{_INDEX}",
    "open_clip_pytorch_model.bin",
)

_REFUSED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)|<(?:class|function|built-in function) '?([\w.]+)")


def read_state(reference: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name: a `.pth`, `.pt` or `.bin` of torch, or safetensors.

    A folder stands for the weights in it by their usual names, an index (`*.index.json`) for all files that it names,
    which lie beside it. Tensors may be views of the file, mapped into memory: copy what is kept. `asset://NAME` is a
    file of the package. Raises CheckpointError, one line, if the file is missing, empty, cut short, no checkpoint, a
    TorchScript archive, or if it asks for anything to be run.
    """
    path = locate(reference)
    if path.is_dir():
        found = next((path / name for name in _IN_FOLDERS if (path / name).is_file()), None)
        if found is None:
            raise CheckpointError(
                f"{path}: a folder without {_IN_FOLDERS[0]} or its like; give the checkpoint file in it"
            )
        return read_state(found)
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint; give the path of a .pth or .safetensors file")
    try:
        with open_file(path) as file:
            head = file.read(9)
        if not head:
            raise CheckpointError(f"{path}: an empty file; copy or download it again")
        if path.name.endswith(_INDEX):
            return _read_parts(path)
        if path.suffix == ".safetensors" or head[8:] == b"{":
            return load_file(path)
        return _tensors_of(_unpickle(path, zipped=head.startswith(b"PK")), path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); copy or download it again") from error


def _read_parts(index: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index names, and no others. Raises CheckpointError if they do not agree."""
    try:
        owners = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        parts = sorted(set(owners.values()))
        beside = all(Path(part).name == part and not part.endswith(_INDEX) for part in parts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of a checkpoint in parts; copy or download it again") from error
    if not parts or not beside:
        raise CheckpointError(f"{index}: does not name files beside it; copy or download it again")
    state: dict[str, Tensor] = {}
    for part in parts:
        state |= read_state(index.parent / part)
    if state.keys() != owners.keys():
        names = shorten(sorted(state.keys() ^ owners.keys()), 3)
        raise CheckpointError(f"{index}: does not agree with its parts on {names}; copy or download them again")
    return state


def _unpickle(path: Path, *, zipped: bool) -> object:
    """Load with torch's restricted unpickler. Raises CheckpointError if it refuses or the file is damaged."""
    if zipped and _is_torchscript(path):
        raise CheckpointError(
            f"{path}: a TorchScript archive, which cannot be read without running its code; give the "
            "safetensors of the same model (OpenAI's CLIP: model.safetensors of openai/clip-vit-base-patch32)"
        )
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            # Only the zipped form can be mapped into memory.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        refused = _REFUSED_GLOBAL.search(str(error))
        if refused is None:
            raise _unreadable(path) from error
        raise CheckpointError(
            f"{path}: refused, it asks for {refused[1] or refused[2]}, which may run code (nothing was run); "
            "give the same weights as safetensors"
        ) from error
    # A damaged file makes the unpickler fail in many ways, all of them of the file and none of ours.
    except Exception as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: not a whole checkpoint of torch, nor safetensors (cut short, or another kind of file); "
        "copy or download it again"
    )


def _is_torchscript(path: Path) -> bool:
    """Whether a zip file has the table of constants that only TorchScript writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):  # cut short: torch will say so too
        return False


def _tensors_of(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file held. Raises CheckpointError if there is none."""
    if isinstance(content, Mapping):
        for key in STATE_KEYS:
            if key in content:
                content = content[key]
                break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: holds no tensors by name; give a checkpoint with a state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: its entry {str(name)!r} is no tensor but {type(value).__name__}; give a file "
                f"with a state dict, bare or under {' or '.join(repr(key) for key in STATE_KEYS)}"
            )
    return dict(content)
