"""What an adapter file says of itself, from its head alone: torch is not needed, and nothing is allocated.

A file may come from anywhere: what it says is plain data, checked before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mwa_lightning.adapters.files.foreign import described_as
from mwa_lightning.errors import CheckpointError
from mwa_lightning.system.plain_files import parse_json, words_in
from mwa_lightning.system.regular_files import NotAFile, open_file

FORMAT = "mwa_lightning adapter 1"
NAME = "adapter.safetensors"
# Settings of a method that change no output once it is trained.
FREE_SETTINGS = frozenset({"dropout"})
# Settings of a backbone, besides its weights and the size of its images, that change outputs but no tensor's shape.
BACKBONE_SETTINGS = (
    "max_text_length",
    "activation",
    "norm_epsilon",
    "image_mean",
    "image_std",
    "resize",
    "interpolation",
    "text_cleaning",
    "max_words",
    "encoder_token",
)

_LONGEST_HEAD = 100_000_000  # as in the library
_LARGEST_IMAGE = 4096
_LARGEST_WIDTH = 4096  # that a file may say without a tensor that shows it
_MOST_IMAGES = 64
_FLOATS = ("F64", "F32", "F16", "BF16")
_WORDS = {dict: "a mapping", list: "a list", int: "a whole number"}
_GIVE = f"give the {NAME} of a run"
_AS_SAVED = "give the file as it was saved"


@dataclass(frozen=True, kw_only=True)
class Header:
    """The head of an adapter file of ours.

    `target` is the class of the method and `settings` its other keys, None and empty in a file that does not say;
    `backbone_settings` are those of `BACKBONE_SETTINGS` that it was trained with, and `image_size`. `images` and
    `classes` are of statements.
    """

    path: Path
    metadata: dict[str, str]
    backbone: str
    fingerprint: str
    task: str | None
    target: str | None
    settings: dict[str, Any]
    backbone_settings: dict[str, Any]
    images: int | None
    classes: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]


def locate_adapter(path: Path) -> Path:
    """The file of an adapter; a run directory stands for the one in it. Raises CheckpointError for another folder."""
    try:
        if not path.is_dir():
            return path
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {_GIVE}") from error
    if (path / NAME).is_file():
        return path / NAME
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(f"{path}: {described_as(['lora_A'])}")
    if (path / "config.yaml").is_file():
        raise CheckpointError(
            f"{path}: a run directory without {NAME}, of an evaluation or of a training that did not end; give the "
            "directory of a training that has ended"
        )
    raise CheckpointError(f"{path}: a folder without {NAME}; {_GIVE}")


def tensor_names(path: Path) -> list[str] | None:
    """The names in a safetensors file; None if it is another kind of file, or none. Raises CheckpointError."""
    head = _head(path)
    return None if head is None else [name for name in head if name != "__metadata__"]


def read_header(path: Path) -> Header:
    """The head of a file. Raises CheckpointError if it is none of ours, or says what cannot be."""
    head = _head(path)
    if head is None:
        raise CheckpointError(f"{path}: not a readable safetensors file; {_GIVE}")
    metadata = head.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: its metadata are not all texts; {_AS_SAVED}")
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: {described_as(list(head))}")
    for key in ("fingerprint", "backbone"):
        if key not in metadata:
            raise CheckpointError(f"{path}: its metadata lack {key!r}; {_AS_SAVED}")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in head.items():
        if not isinstance(tensor, dict) or tensor.get("dtype") not in _FLOATS:
            kind = tensor.get("dtype") if isinstance(tensor, dict) else None
            raise CheckpointError(f"{path}: {name} is of type {kind}, and weights are {', '.join(_FLOATS)}; {_GIVE}")
        shapes[name] = _shape(path, name, tensor.get("shape"))
    config = _value(path, metadata, "config", dict) or {}
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    for key, value in config.items():
        if isinstance(value, int) and value > max(largest, _LARGEST_WIDTH):
            raise CheckpointError(f"{path}: says adapter.{key}={value}, and no tensor in it is that large; {_AS_SAVED}")
    about_backbone = _value(path, metadata, "backbone_settings", dict) or {}
    size = _value(path, metadata, "image_size", int)
    if size is not None:
        about_backbone["image_size"] = size
    size = about_backbone.get("image_size", 1)
    if not isinstance(size, int) or not 0 < size <= _LARGEST_IMAGE:
        raise CheckpointError(f"{path}: says image_size={size}, and 1 to {_LARGEST_IMAGE} can be; {_AS_SAVED}")
    images, classes = _value(path, metadata, "images", int), _value(path, metadata, "classes", list)
    if (images is None) != (classes is None):
        raise CheckpointError(f"{path}: of 'images' and 'classes' its metadata have but one; {_AS_SAVED}")
    if images is not None and not 0 < images <= _MOST_IMAGES:
        raise CheckpointError(
            f"{path}: says images={images} of a statement, and 1 to {_MOST_IMAGES} can be; {_AS_SAVED}"
        )
    if classes is not None and (len(set(map(str, classes))) < max(len(classes), 2)):
        raise CheckpointError(f"{path}: says classes={classes}, and two or more are wanted, each once; {_AS_SAVED}")
    target = config.pop("_target_", None)
    return Header(
        path=path,
        metadata=metadata,
        backbone=metadata["backbone"],
        fingerprint=metadata["fingerprint"],
        task=metadata.get("task"),
        target=None if target is None else str(target),
        settings=config,
        backbone_settings={key: v for key, v in about_backbone.items() if key in ("image_size", *BACKBONE_SETTINGS)},
        images=images,
        classes=tuple(map(str, classes or ())),
        shapes=shapes,
    )


def _shape(path: Path, name: str, said: Any) -> tuple[int, ...]:
    if not isinstance(said, list) or not all(isinstance(size, int) and size >= 0 for size in said):
        raise CheckpointError(f"{path}: not a readable safetensors file ({name} has the shape {said}); copy it again")
    return tuple(said)


def _value(path: Path, metadata: dict[str, str], key: str, kind: type) -> Any:
    """What a file's metadata say under a key, plain data of one kind; None where they say nothing."""
    if key not in metadata:
        return None
    try:
        value = parse_json(metadata[key])
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata {key!r} cannot be read ({error}); {_AS_SAVED}") from error
    if value is None:
        return None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CheckpointError(f"{path}: its metadata {key!r} are not {_WORDS[kind]} but {str(value)[:40]}; {_AS_SAVED}")
    for name, text in words_in(value, key):
        if "${" in text or text == "???":
            raise CheckpointError(
                f"{path}: its metadata {name!r} are {text!r}, and ${{...}} and ??? are not followed; {_AS_SAVED}"
            )
    return value


def _head(path: Path) -> dict[str, Any] | None:
    """The head of a safetensors file as plain data; None if it is another kind of file. Raises CheckpointError."""
    try:
        with open_file(path) as file:
            size = int.from_bytes(file.read(8), "little")
            if file.read(1) != b"{":
                return None
            if size > _LONGEST_HEAD:
                raise CheckpointError(
                    f"{path}: the head of the file is {size:,} bytes long, as of a damaged one; copy it again"
                )
            content = b"{" + file.read(size - 1)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such adapter file; {_GIVE}") from error
    except OSError as error:
        what = error.strerror if isinstance(error, NotAFile) else f"cannot be read ({error.strerror})"
        raise CheckpointError(f"{path}: {what}; {_GIVE}") from error
    if len(content) < size:
        raise CheckpointError(f"{path}: not a readable safetensors file, it is cut short; copy it again")
    try:
        head = parse_json(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); copy it again") from error
    assert isinstance(head, dict)
    return head
