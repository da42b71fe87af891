"""What the files beside a CLIP or SigLIP say of how it wants to be run: its activation, its pictures, its heads.

These are `config.json` and `preprocessor_config.json` (or `processor_config.json`) of transformers, and
`open_clip_config.json` of OpenCLIP. What they leave out has the value that the library gives it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mwa_lightning.errors import CheckpointError

Said = dict[str, Any]

_ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
_FILTERS = {"2": "bilinear", "3": "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}
_MOST = 1 << 20
# What transformers takes where config.json says nothing.
_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "clip": {
        "vision_config": {
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224,
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        },
        "text_config": {
            "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
    },
    "siglip": {
        "vision_config": {
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224,
            "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
        },
        "text_config": {
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
        },
    },
}  # fmt: skip


def said_beside(weights: Path, sizes: Mapping[str, Any], *, open_clip: bool) -> dict[Path, Said]:
    """What each of the files beside one of weights says, by the keys of a backbone's configuration.

    Args:
        weights: The file of the weights.
        sizes: Those that were read from it; a file that is of other sizes is of another model and says nothing.
        open_clip: The weights have OpenCLIP's names: its own file goes first, else those of transformers do.

    Raises:
        CheckpointError: A file is damaged, or says what no backbone here can do.
    """
    of_open_clip = _read(weights.parent / "open_clip_config.json")
    of_transformers = _read(weights.parent / "config.json")
    found: dict[Path, Said] = {}
    if of_open_clip and (open_clip or not of_transformers):
        path, content = of_open_clip
        model = content.get("model_cfg", content)
        if _agrees(sizes, _mapping(model, "vision_cfg"), _mapping(model, "text_cfg"), ("width", "layers")):
            found[path] = _open_clip(model, _mapping(content, "preprocess_cfg"), sizes, path)
        return found
    if of_transformers:
        path, content = of_transformers
        vision, text = (
            _DEFAULTS[sizes["form"]][part] | _mapping(content, part) | _mapping(content, f"{part}_dict")
            for part in ("vision_config", "text_config")
        )
        if not _agrees(sizes, vision, text, ("hidden_size", "num_hidden_layers")):
            return found
        found[path] = _transformers(vision, text, path)
    for name in ("preprocessor_config.json", "processor_config.json"):
        if read := _read(weights.parent / name):
            path, content = read
            pictures = _mapping(content, "image_processor") or content
            found[path] = _preprocessor(pictures, path)
            break
    return found


def _read(path: Path) -> tuple[Path, dict[str, Any]] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: stands beside the weights and cannot be read as JSON; copy or download it again, or take it away"
        ) from error
    return (path, content) if isinstance(content, dict) else None


def _mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _agrees(sizes: Mapping[str, Any], vision: dict[str, Any], text: dict[str, Any], keys: tuple[str, str]) -> bool:
    """Whether a file that stands there is of this model."""
    wanted = ((vision, "vision"), (text, "text"))
    return all(
        not isinstance(part.get(key), int) or part[key] == sizes[f"{stream}_{ours}"]
        for part, stream in wanted
        for key, ours in zip(keys, ("width", "depth"), strict=True)
    )


def _transformers(vision: dict[str, Any], text: dict[str, Any], path: Path) -> Said:
    said: Said = {}
    for key, ours in (("hidden_act", "activation"), ("layer_norm_eps", "norm_epsilon")):
        if vision[key] != text[key]:
            raise CheckpointError(
                f"{path}: gives images {key}={vision[key]} and texts {text[key]}, and here both have the same; choose "
                "another model"
            )
        said[ours] = _activation(vision[key], path) if ours == "activation" else _positive(vision[key], key, path)
    for stream, part in (("vision", vision), ("text", text)):
        said[f"{stream}_heads"] = _count(part["num_attention_heads"], "num_attention_heads", path)
    said["image_size"] = _count(vision["image_size"], "image_size", path)
    return said


def _preprocessor(content: dict[str, Any], path: Path) -> Said:
    said: Said = {}
    if content.get("do_normalize") is False:
        said |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    else:
        said |= {key: _three(content[key], key, path) for key in ("image_mean", "image_std") if key in content}
    resample = content.get("resample")
    if str(resample) in _FILTERS:
        said["interpolation"] = _FILTERS[str(resample)]
    elif resample is not None:
        raise CheckpointError(
            f"{path}: resizes images by resample={resample}; here it is 2 (bilinear) or 3 (bicubic), write "
            "one of these there"
        )
    size = content.get("size")
    if content.get("do_center_crop") is True:
        said["resize"] = "crop"
        edge, crop = _edge(size), _edge(content.get("crop_size"))
        if edge and crop and edge != crop:
            raise CheckpointError(
                f"{path}: resizes images to {edge} px and cuts {crop} px out of them; here both are the same, write "
                f"{crop} for both there"
            )
    elif isinstance(size, dict) and {"height", "width"} <= size.keys():
        said["resize"] = "stretch"
    return said


def _open_clip(model: Mapping[str, Any], pictures: dict[str, Any], sizes: Mapping[str, Any], path: Path) -> Said:
    vision, text = _mapping(model, "vision_cfg"), _mapping(model, "text_cfg")
    said: Said = {}
    if sizes["form"] == "clip":
        said["activation"] = "quick_gelu" if model.get("quick_gelu") else "gelu"
        head = _count(vision.get("head_width", 64), "head_width", path)
        said["vision_heads"] = sizes["vision_width"] // head
        said["text_heads"] = _count(text.get("heads", 8), "heads", path)
    elif "heads" in text:
        said["text_heads"] = _count(text["heads"], "heads", path)
    if isinstance(vision.get("image_size"), int):
        said["image_size"] = _count(vision["image_size"], "image_size", path)
    said |= {f"image_{key}": _three(pictures[key], key, path) for key in ("mean", "std") if key in pictures}
    if str(pictures.get("interpolation")) in _FILTERS:
        said["interpolation"] = _FILTERS[str(pictures["interpolation"])]
    modes = {"shortest": "crop", "squash": "stretch"}
    mode = pictures.get("resize_mode")
    if str(mode) in modes:
        said["resize"] = modes[str(mode)]
    elif mode is not None:
        raise CheckpointError(
            f"{path}: resizes images by resize_mode={mode}; here it is shortest (crop) or squash (stretch), write one "
            "of these there"
        )
    return said


def _activation(name: Any, path: Path) -> str:
    if str(name) not in _ACTIVATIONS:
        raise CheckpointError(
            f"{path}: its activation is {name}, and here it can be {', '.join(_ACTIVATIONS)}; choose another model"
        )
    return _ACTIVATIONS[str(name)]


def _positive(value: Any, key: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(f"{path}: {key}={value} is not a number above 0; copy or download it again")
    return float(value)


def _count(value: Any, key: str, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _MOST:
        raise CheckpointError(
            f"{path}: {key}={value} is not a whole number above 0 and below {_MOST:,}; copy or download it again"
        )
    return value


def _three(value: Any, key: str, path: Path) -> list[float]:
    numbers = value if isinstance(value, list) else []
    divides = key.endswith("std")
    sound = [type(number) in (int, float) and 0 <= number <= 1 and (number or not divides) for number in numbers]
    if len(numbers) != 3 or not all(sound):
        wanted = "above 0 and up to 1" if divides else "from 0 to 1"
        raise CheckpointError(f"{path}: {key}={value} is not three numbers {wanted}; copy or download it again")
    return [float(number) for number in numbers]


def _edge(size: Any) -> int | None:
    """The side of a square, in the three ways that transformers writes it."""
    if isinstance(size, dict):
        sides = {side for key in ("shortest_edge", "height", "width") if isinstance(side := size.get(key), int)}
        return sides.pop() if len(sides) == 1 else None
    return size if isinstance(size, int) else None
