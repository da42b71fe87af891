"""A pretrained or adapted model in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mwa_lightning.adapters.files.adapter_file import method_in
from mwa_lightning.adapters.files.metadata import locate_adapter
from mwa_lightning.cli.adopting import backbone_settings_of, header_of, method_of, settings_of
from mwa_lightning.cli.config.composing import Request, apply, compose_groups
from mwa_lightning.cli.config.groups import group_options
from mwa_lightning.cli.config.suggesting import did_you_mean
from mwa_lightning.cli.config.trusted import targets_of
from mwa_lightning.data.images.reader import colour_of, rule_of
from mwa_lightning.data.images.transforms import EvaluationTransform
from mwa_lightning.data.text.tokenizers import Tokenizer
from mwa_lightning.errors import CheckpointError, ConfigError
from mwa_lightning.training.assembly.build import build_model, image_options, task_class
from mwa_lightning.training.assembly.lavis_texts import settle_texts
from mwa_lightning.training.assembly.settled_weights import settle_weights


class Loaded(NamedTuple):
    """A model in eval mode, its tokenizer (texts to ids and mask), its transform (pictures to a uint8 tensor).

    The model is a RetrievalModel (`encode_image`, `encode_text`) or, for statements about images, a ReasoningModel
    (`model(images, ids, mask)`; its classes are `model.heads.shape.classes`).
    """

    model: Any
    tokenizer: Tokenizer
    transform: EvaluationTransform


def load(
    name: str,
    checkpoint: str | Path | None = None,
    adapter: str | Path | None = None,
    *,
    task: str | None = None,
    tokenizer: str | Path | None = None,
    image_size: int | None = None,
    background: str | Sequence[int] | None = "auto",
    checkpoint_key: str | None = None,
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

    model, tokenizer, transform = mwa_lightning.load("beit3_tiny", adapter="logs/other_run/adapter.safetensors")
    pair = torch.stack([transform(Image.open(file)) for file in ("left.jpg", "right.jpg")])
    with torch.inference_mode():
        logits = model(pair[None], *tokenizer(["there is a star in both pictures"]))  # task=reasoning: False, True
    ```

    Args:
        name: The backbone, a file of `configs/backbone`: `beit3_tiny` (its weights ship with the package),
            `beit3_base`, `clip_b32`, `siglip2_base` and so on.
        checkpoint: Its weights, an official file, or the folder of one; `"random"` for none.
        adapter: None for the frozen model (zero-shot); an `adapter.safetensors`, or the run directory that it is in,
            whose metadata name the method, its settings and what the backbone was like; a `.pth` of the released code
            of MultiWay-Adapter or ModeX (with ModeX texts are cleaned as in LAVIS, in which it was made); or the name
            of a method, freshly made.
        task: `retrieval`, `reasoning` or `entailment`; None = that of the adapter file, or retrieval. Where no adapter
            file says it, `reasoning` is of two images, true or false, and `entailment` of one image and three classes.
        tokenizer: The backbone's tokenizer: a file (`beit3.spm`), a folder, or `hf://OWNER/NAME`.
        image_size: Side of the images in pixels; position embeddings are interpolated to it. None is the size that
            an `adapter.safetensors` was trained at, or else the backbone's own.
        background: The colour on which `transform` lays transparent images, None for none, as `data.background`. "auto"
            is that of the data that an `adapter.safetensors` was trained on, which also says whether images are turned
            as the camera noted and 16 bits are scaled to 8; without one: white, and yes.
        checkpoint_key: Which model, where the file of `checkpoint` holds several: what it stands under.

    Raises:
        ConfigError: No such backbone or adapter, or parts that do not fit.
        CheckpointError: Weights are missing, cannot be read or belong to another model.
    """
    backbones = group_options("backbone")
    if name not in backbones:
        raise ConfigError(
            f"there is no backbone {name!r}.{did_you_mean(name, backbones)} Choose one of {', '.join(backbones)}"
        )
    method, file = _adapter(adapter)
    header = None if file is None else header_of(file)
    metadata = {} if header is None else header.metadata
    try:
        rule = rule_of(metadata.get("pictures", "{}"))
    except (ValueError, ConfigError, RecursionError) as error:
        raise CheckpointError(
            f"{adapter}: its metadata do not say how images are read; give the file as it was saved"
        ) from error
    if background != "auto":
        rule = replace(rule, background=colour_of(background))
    tasks = group_options("task")
    of_file = task is None and "task" in metadata
    task = task or metadata.get("task", "retrieval")
    if task not in tasks:
        what = f"{adapter}: was trained for task={task}, and" if of_file else f"task={task}:"
        raise ConfigError(f"{what} there is no such task.{did_you_mean(task, tasks)} Choose one of {', '.join(tasks)}")
    config = compose_groups("train", {"backbone": name, "adapter": method, "task": task})
    values: dict[str, Any] = {}
    if file is not None:
        settings = method_in(file)[1] if header is None else settings_of(header, config.adapter)
        values = {f"adapter.{key}": value for key, value in settings.items()} | {"adapter.checkpoint": str(file)}
    if header is not None:
        of_backbone = backbone_settings_of(header, config.backbone)
        values |= {f"backbone.{key}": value for key, value in of_backbone.items()}
    given = {
        "checkpoint": checkpoint,
        "checkpoint_key": checkpoint_key,
        "tokenizer": tokenizer,
        "image_size": image_size,
    }
    for key, value in given.items():
        if value is not None:
            values[f"backbone.{key}"] = str(value) if isinstance(value, Path) else value
    said = (None, ()) if header is None else (header.images, header.classes)
    shape = task_class(config).file_shape(task, images=said[0], classes=said[1])
    if shape is not None and "pair" in config.backbone:
        values["backbone.pair"] = shape.images == 2
    apply(config, Request(choices={}, values=values, added={}))
    settle_weights(config)
    settle_texts(config, always=True)
    model, reader = build_model(config, shape)
    return Loaded(model.eval(), reader, EvaluationTransform(**image_options(config), rule=rule))


def _adapter(adapter: str | Path | None) -> tuple[str, Path | None]:
    """The choice of `configs/adapter` that a method's name or an adapter file stands for, and the file.

    A file may come from anywhere, so the class that it names is only compared with those of the configs, never
    imported.
    """
    methods = group_options("adapter")
    if adapter is None:
        return "none", None
    if str(adapter) in methods:
        return str(adapter), None
    path = locate_adapter(Path(adapter).expanduser())
    if not path.is_file():
        raise ConfigError(
            f"adapter={adapter}: neither a file nor a method.{did_you_mean(str(adapter), methods)} Give an "
            f"adapter.safetensors, or one of {', '.join(methods)}"
        )
    header = header_of(path)
    return targets_of("adapter")[str(method_in(path)[0])] if header is None else method_of(header), path
