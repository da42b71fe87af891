"""A checkpoint file as tensors by name, without running anything that the file brings along."""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mwa_lightning.backbones.checkpoints.archives import check_archive
from mwa_lightning.backbones.checkpoints.assets import locate
from mwa_lightning.backbones.checkpoints.not_weights import HEAD, described, folder_described
from mwa_lightning.errors import CheckpointError, shorten
from mwa_lightning.hub_access import HUB, from_hub
from mwa_lightning.system.regular_files import open_file

# The tensors are under the first of these that a file has, else the file is the bare dict: the official rule, and
# Lightning's name.
STATE_KEYS = ("model", "module", "state_dict")

_LARGEST_HEADER = 100_000_000  # bytes, of safetensors

# What files carry beside tensors: the arguments of the run, with paths and numpy numbers among them, and the states of
# numpy's generators. These hold data only. Both names of numpy's and pathlib's modules occur, by the versions that
# wrote the file. Paths become pure paths, which every operating system can make of any other's.
_SCALAR: Callable[..., Any] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
_ARRAY: Callable[..., Any] = np.zeros(0).__reduce__()[0]  # type: ignore[assignment]
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
    *((_ARRAY, f"{module}.multiarray._reconstruct") for module in ("numpy.core", "numpy._core")),
    np.ndarray,
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

# What stands beside them and says how they want to be run.
BESIDE = ("config.json", "preprocessor_config.json", "processor_config.json", "open_clip_config.json")

_REFUSED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)|<(?:class|function|built-in function) '?([\w.]+)")


def read_state(reference: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name, where a file has but one group of them: see `read_content`.

    Raises CheckpointError, one line, also if there are none.
    """
    return _tensors_of(read_content(reference), weights_file(reference))


def read_content(reference: str | Path, *, shapes_only: bool = False) -> object:
    """Read what a checkpoint holds: a `.pth`, `.pt`, `.ckpt` or `.bin` of torch, or safetensors.

    `reference` is as in `weights_file`; an index (`*.index.json`) stands for all files that it names, which lie beside
    it. Tensors may be views of the file, mapped into memory: copy what is kept. With `shapes_only` they are on the
    device `meta`, and no bytes of them are read. Raises CheckpointError, one line, if the file is missing, empty, cut
    short, damaged, no checkpoint, a TorchScript archive, or if it asks for anything to be run.
    """
    path = weights_file(reference)
    try:
        with open_file(path) as file:
            head = file.read(HEAD)
        if not head:
            raise CheckpointError(f"{path}: an empty file; copy or download it again")
        if path.name.endswith(_INDEX):
            return _read_parts(path, shapes_only=shapes_only)
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _LARGEST_HEADER:
            return _shapes(path) if shapes_only else load_file(path)
        if head.startswith(b"PK"):
            return _unpickle(path, mapped=check_archive(path, checksums=not shapes_only), shapes_only=shapes_only)
        if (what := described(path, head)) is not None:
            raise CheckpointError(f"{path}: {what}")
        return _unpickle(path, mapped=False, shapes_only=shapes_only)
    except OSError as error:
        raise _not_read(path, error) from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); copy or download it again") from error


def weights_file(reference: str | Path) -> Path:
    """The file that a reference names: a path, `asset://NAME`, or `hf://OWNER/NAME`.

    A folder, and a repository of the hub, stand for the weights in them by their usual names. Raises CheckpointError if
    there is none.
    """
    path = _of_hub(str(reference)) if str(reference).startswith(HUB) else locate(reference)
    try:
        if not path.exists():
            raise CheckpointError(f"{path}: no such checkpoint; give the path of a .pth or .safetensors file")
        if not path.is_dir():
            return path
        found = next((path / name for name in _IN_FOLDERS if (path / name).is_file()), None)
        if found is None:
            raise CheckpointError(f"{path}: {folder_described(path, _IN_FOLDERS[0])}")
    except OSError as error:  # of a folder that may not be looked into, a name that is too long
        raise _not_read(path, error) from error
    return found


def _not_read(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read ({error.strerror or error}); mend that, or give another file")


def _of_hub(reference: str) -> Path:
    """The folder of a repository's weights, with what stands beside them."""
    instead = "the folder of its files"
    folder = from_hub(reference, [(name,) for name in _IN_FOLDERS], beside=BESIDE, instead=instead)
    index = next((folder / name for name in _IN_FOLDERS if (folder / name).is_file()), folder)
    if index.name.endswith(_INDEX):
        from_hub(reference, [sorted(set(_owners(index).values()))], instead=instead)
    return folder


def _shapes(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file without their bytes."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}


def _owners(index: Path) -> dict[str, str]:
    """The file of each tensor that an index names. Raises CheckpointError if it is no index."""
    try:
        owners = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        beside = all(Path(part).name == part and not part.endswith(_INDEX) for part in owners.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of a checkpoint in parts; copy or download it again") from error
    if not owners or not beside:
        raise CheckpointError(f"{index}: does not name files beside it; copy or download it again")
    return dict(owners)


def _read_parts(index: Path, *, shapes_only: bool) -> dict[str, Tensor]:
    """The tensors of all files that an index names, and no others. Raises CheckpointError if they do not agree."""
    owners = _owners(index)
    state: dict[str, Tensor] = {}
    for part in sorted(set(owners.values())):
        if not (index.parent / part).exists():
            raise CheckpointError(f"{index}: names {part}, which is not beside it; copy or download that too")
        state |= _tensors_of(read_content(index.parent / part, shapes_only=shapes_only), index.parent / part)
    if state.keys() != owners.keys():
        names = shorten(sorted(state.keys() ^ owners.keys()), 3)
        raise CheckpointError(f"{index}: does not agree with its parts on {names}; copy or download them again")
    return state


def _unpickle(path: Path, *, mapped: bool, shapes_only: bool) -> object:
    """Load with torch's restricted unpickler. Raises CheckpointError if it refuses or the file is damaged."""
    device = "meta" if shapes_only else "cpu"
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location=device, weights_only=True, mmap=mapped and not shapes_only)
    except pickle.UnpicklingError as error:
        refused = _REFUSED_GLOBAL.search(str(error))
        if refused is None:
            raise _unreadable(path) from error
        asked = (refused[1] or refused[2]).removeprefix("builtins.")
        raise CheckpointError(
            f"{path}: refused, it asks for {asked}, which may run code (nothing was run); "
            "give the same weights as safetensors, or a file with the state dict alone"
        ) from error
    # A damaged file makes the unpickler fail in many ways, all of them of the file and none of ours.
    except Exception as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise CheckpointError(
                f"{path}: memory does not suffice to read its {path.stat().st_size:,} bytes; free some, or give the "
                "same weights as safetensors, which is read in parts"
            ) from error
        raise _unreadable(path) from error


def _unreadable(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: not a whole checkpoint of torch, nor safetensors (cut short, or another kind of file); "
        "copy or download it again"
    )


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
                f"with a state dict, bare or under one of {', '.join(map(repr, STATE_KEYS))}"
            )
    return dict(content)
