"""A pretrained or adapted model in one call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.global_hydra import GlobalHydra

from mwa_lightning.adapters.files import read_metadata
from mwa_lightning.adapters.released import read_released, released_options
from mwa_lightning.cli.composing import Request, apply, compose_groups
from mwa_lightning.cli.menu import config_directory, group_options
from mwa_lightning.cli.suggesting import did_you_mean
from mwa_lightning.data.tokenizers import SentencePieceTokenizer
from mwa_lightning.data.transforms import EvaluationTransform
from mwa_lightning.errors import CheckpointError, ConfigError
from mwa_lightning.tasks.model import RetrievalModel
from mwa_lightning.training.build import build_model


class Loaded(NamedTuple):
    """A model in eval mode, its tokenizer (texts to ids and mask), its transform (PIL image to uint8 tensor)."""

    model: RetrievalModel
    tokenizer: SentencePieceTokenizer
    transform: EvaluationTransform


def load(
    name: str,
    checkpoint: str | Path | None = None,
    adapter: str | Path | None = None,
    *,
    tokenizer: str | Path | None = None,
    image_size: int | None = None,
) -> Loaded:
    """Load a backbone of `configs/backbone`, adapted where an adapter is given.

    ```python
    import torch, mwa_lightning
    from PIL import Image

    model, tokenizer, transform = mwa_lightning.load("beit3_tiny", adapter="logs/my_run/adapter.safetensors")
    with torch.inference_mode():
        images = model.encode_image(transform(Image.open("photo.jpg"))[None])
        texts = model.encode_text(*tokenizer(["a red circle left of a blue square", "two green stars"]))
    scores = images @ texts.T  # cosines
    ```

    Args:
        name: The backbone: `beit3_tiny` (its weights ship with the package), `beit3_base` or `beit3_large`.
        checkpoint: Its weights, an official `.pth` or safetensors; `"random"` for none.
        adapter: None for the frozen model (zero-shot); an `adapter.safetensors`, whose metadata name the
            method and its settings; a `.pth` of the released MultiWay-Adapter code; or the name of a method,
            freshly made.
        tokenizer: The SentencePiece model of the backbone (`beit3.spm` for base and large).
        image_size: Side of the images in pixels; position embeddings are interpolated to it.

    Raises:
        ConfigError: No such backbone or adapter, or parts that do not fit.
        CheckpointError: Weights are missing, cannot be read or belong to another model.
    """
    backbones = group_options("backbone")
    if name not in backbones:
        raise ConfigError(
            f"there is no backbone {name!r}.{did_you_mean(name, backbones)} Choose one of {', '.join(backbones)}"
        )
    method, values = _adapter(adapter)
    given = {"checkpoint": checkpoint, "tokenizer": tokenizer, "image_size": image_size}
    for key, value in given.items():
        if value is not None:
            values[f"backbone.{key}"] = str(value) if isinstance(value, Path) else value
    with _outside_hydra():
        config = compose_groups("train", {"backbone": name, "adapter": method})
    apply(config, Request(choices={}, values=values, added={}))
    model, reader = build_model(config)
    return Loaded(model.eval(), reader, EvaluationTransform(image_size=config.backbone.image_size))


@contextmanager
def _outside_hydra() -> Iterator[None]:
    """Set aside the Hydra of an application that calls us: a process has but one at a time."""
    theirs = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        # Hydra may have put another instance in the place of the first.
        GlobalHydra.instance().hydra = theirs


def _adapter(adapter: str | Path | None) -> tuple[str, dict[str, Any]]:
    """The choice of `configs/adapter`, and its keys, that a method's name or an adapter file stands for."""
    methods = group_options("adapter")
    if adapter is None:
        return "none", {}
    if str(adapter) in methods:
        return str(adapter), {}
    path = Path(adapter).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"adapter={adapter}: neither a file nor a method.{did_you_mean(str(adapter), methods)} Give an "
            f"adapter.safetensors, or one of {', '.join(methods)}"
        )
    settings: dict[str, Any]
    if path.suffix == ".safetensors":
        method, settings = _from_metadata(path)
    else:
        method, settings = "mwa", dict(released_options(read_released(path)))
    return method, {f"adapter.{key}": value for key, value in settings.items()} | {"adapter.checkpoint": str(path)}


def _from_metadata(path: Path) -> tuple[str, dict[str, Any]]:
    """The method and the settings that an adapter file names.

    A file may come from anywhere, so its `_target_` is only compared with those of our own configs, never
    imported.
    """
    try:
        node = json.loads(read_metadata(path).get("config", ""))
    except json.JSONDecodeError:
        node = {}
    target = node.pop("_target_", None) if isinstance(node, dict) else None
    for method in group_options("adapter"):
        shipped = yaml.safe_load((config_directory() / "adapter" / f"{method}.yaml").read_text(encoding="utf-8"))
        if shipped["_target_"] == target:
            return method, node
    raise CheckpointError(f"{path}: its method {target} is none of {', '.join(group_options('adapter'))}")
