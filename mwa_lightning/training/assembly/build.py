"""From a configuration to a model with weights and a tokenizer; used by training, evaluation and `load`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

import mwa_lightning
from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.adapters.files.adapter_file import is_ours, load_adapter, load_fitting, method_in
from mwa_lightning.adapters.files.metadata import BACKBONE_SETTINGS, FREE_SETTINGS, read_header
from mwa_lightning.adapters.none import NoAdapter
from mwa_lightning.adapters.pair_from_single import one_image_sources
from mwa_lightning.backbones.base import Backbone
from mwa_lightning.backbones.checkpoints import load_backbone, locate
from mwa_lightning.backbones.checkpoints.fingerprint import fingerprint
from mwa_lightning.data.images.reader import colour_of
from mwa_lightning.data.layouts import LAYOUTS
from mwa_lightning.data.text.cleaning import TextCleaning
from mwa_lightning.data.text.subwords import make_tokenizer
from mwa_lightning.data.text.tokenizers import Tokenizer
from mwa_lightning.errors import CheckpointError, ConfigError, shorten
from mwa_lightning.hub_access import HUB
from mwa_lightning.tasks.base import AdaptationTask
from mwa_lightning.tasks.model import AdaptedModel
from mwa_lightning.training.instantiating import class_of, instantiate

log = logging.getLogger(__name__)

RANDOM = "random"


def task_class(config: DictConfig) -> type[AdaptationTask[Any, Any]]:
    """The class of the task of a configuration. Raises ConfigError if there is none."""
    return class_of(config.task, group="task", base=AdaptationTask)  # type: ignore[type-abstract]


def build_model(config: DictConfig, shape: Any = None) -> tuple[AdaptedModel, Tokenizer]:
    """The model of a configuration, weights read and adapter attached, and the tokenizer of its backbone.

    `shape` is that of the statements, where the task is about some; without it, that of the task's usual data.
    Raises CheckpointError if the backbone has no weights, or if a file does not fit; ConfigError if the
    tokenizer does not fit the backbone.
    """
    tokenizer = build_tokenizer(config)
    backbone, heads = build_backbone(config, shape)
    return attach(config, backbone, heads), tokenizer


def build_tokenizer(config: DictConfig) -> Tokenizer:
    """The tokenizer of `backbone.tokenizer`; reading it takes no weights, so it comes first."""
    node = config.backbone
    if node.tokenizer is None:
        raise CheckpointError(f"{node.name} has no tokenizer: give backbone.tokenizer=FILE ({node.official})")
    form = node.get("text_cleaning", "none")
    tokenizer = make_tokenizer(
        node.tokenizer_kind,
        node.tokenizer if str(node.tokenizer).startswith(HUB) else locate(node.tokenizer),
        max_length=node.max_text_length,
        fixed_length=node.get("form") == "siglip",  # it attends to its padding
        cleaning=None if form == "none" else TextCleaning(form, node.max_words),
    )
    tokenizer.check_fits(node.vocabulary_size)
    return tokenizer


def image_options(config: DictConfig) -> dict[str, Any]:
    """How the backbone wants its images, for transforms."""
    return {key: config.backbone[key] for key in ("image_size", "resize", "interpolation")}


def build_backbone(config: DictConfig, shape: Any = None) -> tuple[Backbone, nn.Module]:
    """The backbone and the task's heads with the weights of `backbone.checkpoint`; `random` draws from the seed.

    Heads that the file does not have are freshly drawn, and named in the log. Raises CheckpointError if these are to be
    evaluated as they are: nothing has trained a head for statements then.
    """
    node = config.backbone
    if node.checkpoint is None:
        raise CheckpointError(
            f"{node.name} has no weights: give backbone.checkpoint=FILE ({node.official}), or "
            "backbone.checkpoint=random"
        )
    torch.manual_seed(config.seed)
    backbone: Backbone = instantiate(node, group="backbone", base=Backbone)
    heads = task_class(config).make_heads(backbone, shape, name=config.task.name)
    if node.checkpoint == RANDOM:
        backbone.fingerprint = fingerprint(dict(backbone.named_parameters()))
        log.warning("%s has random weights, as asked for", node.name)
    else:
        _read_weights(config, backbone, heads)
    return backbone, heads


def _read_weights(config: DictConfig, backbone: Backbone, heads: nn.Module) -> None:
    """Fill backbone and heads from `backbone.checkpoint`, and name in the log what stays as it was drawn."""
    part = getattr(heads, "pretrained", heads)
    report = load_backbone(backbone, part, config.backbone.checkpoint, key=config.backbone.get("checkpoint_key"))
    log.info("%s", report)
    may_be_read = {id(parameter) for parameter in part.parameters()}
    beside = [f"heads.{name}" for name, parameter in heads.named_parameters() if id(parameter) not in may_be_read]
    if beside:
        log.info("in no file of %s, freshly drawn: %s", backbone.name, shorten(beside))
    fresh = [*(name for name in report.new if name.startswith("heads.")), *beside]
    if not fresh or not config.adapter._target_.endswith(".NoAdapter"):
        return
    if why := task_class(config).untrained(shorten(fresh, 2)):
        raise CheckpointError(f"{config.backbone.checkpoint}: {why}")
    log.warning(
        "%s: has no heads for retrieval (%s), and adapter=none trains none: similarities mean nothing; give a file "
        "that was tuned contrastively",
        config.backbone.checkpoint,
        shorten(fresh, 2),
    )


def attach(config: DictConfig, backbone: Backbone, heads: nn.Module, *, start: bool = False) -> AdaptedModel:
    """Attach the adapter of a configuration, with the weights of `adapter.checkpoint` if there are any.

    Its initial values depend on the seed alone, not on what was done before. To `start` training, the file may be of
    another task: what fits is used, and what is new is named in a warning.
    """
    path = None if config.adapter.checkpoint is None else Path(config.adapter.checkpoint)
    if path is not None and not config.adapter._target_.endswith(".NoAdapter"):
        _check_settings(config, path)
    torch.manual_seed(config.seed)
    adapter: AdapterMethod = instantiate(config.adapter, group="adapter", base=AdapterMethod)
    model = task_class(config).make_model(backbone, adapter, heads)
    if path is not None:
        if isinstance(adapter, NoAdapter):
            raise ConfigError("adapter.checkpoint: adapter=none has nothing to load; choose the adapter of the file")
        if start and _of_other_task(config, path):
            _start_from(path, config, model)
        else:
            _check_origin(path, config.task.name, model)
            load_adapter(path, model, fingerprint=backbone.fingerprint)
    return model


def _check_settings(config: DictConfig, path: Path) -> None:
    """Hold the configuration against what an adapter file says of its method, and warn of what it says of the backbone.

    Raises CheckpointError if the file is of another method, or of other settings than change nothing.
    """
    target, settings = method_in(path)
    node = config.adapter
    given = {f"adapter.{key}": (value, node.get(key)) for key, value in settings.items() if key not in FREE_SETTINGS}
    differing = {key: said for key, (said, own) in given.items() if said != own}
    words = " ".join(f"{key}={value}" for key, value in differing.items())
    if target is not None and target != node._target_:
        theirs, own = target.rpartition(".")[2], node._target_.rpartition(".")[2]
        raise CheckpointError(f"{path}: is an adapter of {theirs}, not of {own}: choose its adapter= ({words})")
    if differing:
        raise CheckpointError(f"{path}: its adapter is another than the configuration says: give {words}")
    if is_ours(path):
        backbone = config.backbone
        of_it = {key: value for key, value in read_header(path).backbone_settings.items() if key in backbone}
        other = [f"{key}={value} (here: {backbone[key]})" for key, value in of_it.items() if value != backbone[key]]
        if other:
            log.warning("%s: was trained with backbone.%s", path, shorten(other))


def _of_other_task(config: DictConfig, path: Path) -> bool:
    return is_ours(path) and (read_header(path).task or config.task.name) != config.task.name


def _start_from(path: Path, config: DictConfig, model: AdaptedModel) -> None:
    """Fill what fits from the adapter file of another task, on this form of the backbone or on that for one image."""
    backbone, heads = model.backbone, model.heads
    part = getattr(heads, "pretrained", heads)
    identity = read_header(path).fingerprint
    sources: dict[str, str] | None = None
    if identity == backbone.one_image_fingerprint:
        node = config.backbone.copy()
        node.pair = False
        with torch.device("meta"):
            form = instantiate(node)
            adapter = instantiate(config.adapter)
            adapter.attach(form, nn.Module(), streams=form.streams)
        sources = one_image_sources(model, form, adapter)
    else:
        identity = backbone.fingerprint
    log.warning("%s", load_fitting(path, model, part, fingerprint=identity, sources=sources))


def _check_origin(path: Path, task: str, model: AdaptedModel) -> None:
    """Raise CheckpointError if an adapter file says that it was trained for another task, or for other classes."""
    if not is_ours(path):
        return
    header = read_header(path)
    trained_for = header.task or task
    if trained_for != task:
        raise CheckpointError(f"{path}: was trained for task={trained_for}, not for task={task}; choose its task")
    model.check_trained_on(path, images=header.images, classes=header.classes)


def adapter_metadata(config: DictConfig, model: AdaptedModel) -> dict[str, Any]:
    """What `adapter.safetensors` says of itself."""
    backbone = model.backbone
    node, about_backbone = (OmegaConf.to_container(part, resolve=True) for part in (config.adapter, config.backbone))
    assert isinstance(node, dict)
    assert isinstance(about_backbone, dict)
    return {
        "method": str(config.adapter._target_).rsplit(".", 1)[-1],
        "task": str(config.task.name),
        **model.metadata(),
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint,
        "version": mwa_lightning.__version__,
        "image_size": backbone.image_size,
        "pictures": _pictures(config),
        "backbone_settings": {key: about_backbone[key] for key in BACKBONE_SETTINGS if key in about_backbone},
        "config": {key: value for key, value in node.items() if key != "checkpoint"},
    }


def _pictures(config: DictConfig) -> dict[str, Any]:
    """How the pictures were read that it was trained on, for `rule_of`."""
    layout = LAYOUTS.get(config.data.get("layout"))
    own = layout is None or not layout.official
    background = config.data.get("background", "white" if own else None)
    colour = colour_of(background if isinstance(background, str | None) else list(background))
    exif = bool(config.data.get("exif", own))
    return {"exif": exif, "scale_deep": own, "background": None if colour is None else list(colour)}
