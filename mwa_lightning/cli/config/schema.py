"""Which values each key may have. Checked before anything is imported, read or written."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from mwa_lightning.errors import ConfigError
from mwa_lightning.hub_names import hub_name

# A rule returns the value as it shall stand in the configuration, or raises ValueError with what is wanted.
Rule = Callable[[Any], Any]


class NoSuchFile(ValueError):  # noqa: N818 (what is wrong)
    """A value names a file that is not there: nothing else would be a value of this kind."""


def _integer(low: int, high: int | None = None) -> Rule:
    def rule(value: Any) -> int:
        beyond = not isinstance(value, int) or value < low or (high is not None and value > high)
        if isinstance(value, bool) or beyond:
            raise ValueError(f"want a whole number from {low} {'up' if high is None else f'to {high}'}")
        return value

    return rule


def _number(low: float, high: float = math.inf, *, with_low: bool = True, with_high: bool = True) -> Rule:
    limits = f"{'from' if with_low else 'above'} {low:g}"
    if high < math.inf:
        limits += f" {'to' if with_high else 'to below'} {high:g}"

    def rule(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"want a number {limits}")
        if value < low or value > high or (value == low and not with_low) or (value == high and not with_high):
            raise ValueError(f"want a number {limits}")
        return value

    return rule


def _numbers(each: Rule, example: str) -> Rule:
    length = example.count(",") + 1

    def rule(value: Any) -> Any:
        if not isinstance(value, ListConfig) or len(value) != length:
            raise ValueError(f"want a list of {length} numbers, such as {example}")
        return _each(each, value)

    return rule


def _each(rule: Rule, value: ListConfig) -> ListConfig:
    """A list whose items all keep a rule."""
    for item in value:
        try:
            rule(item)
        except ValueError as error:
            raise ValueError(f"{error} for each") from error
    return value


def _classes(value: Any) -> Any:
    names = [str(name) for name in value] if isinstance(value, ListConfig) else []
    if len(names) < 2 or len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise ValueError("want a list of two classes or more, each once, such as [no,yes]")
    return value


def _colour(value: Any) -> Any:
    if isinstance(value, ListConfig):
        return _numbers(_integer(0, 255), "[255,255,255]")(value)
    if str(value) in ("white", "black", "gray", "grey") or re.fullmatch("#[0-9a-fA-F]{6}", str(value)):
        return str(value)
    raise ValueError("want white, black, gray, #rrggbb or [red,green,blue] of 0 to 255 each")


def _annotations(value: Any) -> Any:
    if isinstance(value, ListConfig | DictConfig):
        names = [
            name
            for each in (value.values() if isinstance(value, DictConfig) else value)
            for name in (each if isinstance(each, ListConfig) else [each])
        ]
        if not names:
            raise ValueError("want a name, a list [NAME,NAME], or {train:NAME,val:NAME,test:NAME}")
        for name in names:
            _text(name)
        return value
    return _text(value)


def _columns(value: Any) -> Any:
    keys = ("image", "caption", "text", "label", "split", "identifier")
    if not isinstance(value, DictConfig) or not value or not set(value) <= set(keys):
        raise ValueError(
            "want names of columns, such as {image:NAME,caption:NAME,split:NAME}; for statements those of image, text, "
            "label, split and identifier"
        )
    for key, name in value.items():
        for each in name if key in ("image", "caption") and isinstance(name, ListConfig) else [name]:
            _text(each)
    return value


def _choice(*options: str) -> Rule:
    wanted = f"one of {', '.join(options)}" if len(options) > 1 else options[0]

    def rule(value: Any) -> str:
        if str(value) not in options:
            raise ValueError(f"want {wanted}")
        return str(value)

    return rule


def _precision(value: Any) -> str:
    """The name that configurations have of a precision, of any that Lightning takes."""
    name = str(value)
    if name == "16-true":
        raise ValueError("AdamW's eps and small gradients are 0 in float16; take 16-mixed or bf16-true")
    if name.startswith("transformer-engine"):
        raise ValueError("replaces the linear layers that adapters and weights are of; take bf16-mixed")
    same = {"32-true": "32", "bf16": "bf16-mixed", "16": "16-mixed", "64": "64-true"}
    return _choice("32", "bf16-mixed", "16-mixed", "bf16-true", "64-true")(same.get(name, name))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("want true or false")
    return value


def _text(value: Any) -> str:
    if isinstance(value, DictConfig | ListConfig | bool) or not str(value).strip():
        raise ValueError("want a text, such as a name or a path")
    return str(value)


def _project(value: Any) -> str:
    text = _text(value)
    if len(text) > 128 or set(text) & set("/\\#?%:"):
        raise ValueError("want a word of at most 128 characters, without / \\ # ? % :")
    return text


def _folder_name(value: Any) -> str:
    text = _text(value)
    if text in (".", "..") or set(text) & set("/\\\0"):
        raise ValueError("want the name of a folder, without / and \\; run_dir= takes a path")
    return text


def _path(value: Any) -> str:
    """Make a path absolute, so that a saved configuration means the same from any directory."""
    return str(Path(_text(value)).expanduser().absolute())


def _resume(value: Any) -> str:
    text = _text(value)
    # Without "..", so that the same file has the same name from any directory.
    return text if text in ("auto", "never") else os.path.normpath(_path(text))


def _weights(value: Any) -> str:
    text = _text(value)
    if text == "random" or text.startswith(("asset://", "hf://")):
        return text
    there = os.path.exists(Path(text).expanduser())  # noqa: PTH110 (False also of a name that is too long)
    if not there and (name := hub_name(text)) is not None:
        raise ConfigError(f"backbone.checkpoint={text}: there is no such file; {name}")
    return _path(text)


def _tokenizer(value: Any) -> str:
    text = _text(value)
    if text.startswith(("asset://", "hf://")):
        return text
    if _HUB_NAME.fullmatch(text) and not os.path.exists(text):  # noqa: PTH110 (as above)
        raise NoSuchFile(f"there is no such file; for the files of that name on the hub, write hf://{text}")
    return _path(text)


def _either(first: Rule, second: Rule) -> Rule:
    def rule(value: Any) -> Any:
        try:
            return first(value)
        except ValueError as one:
            try:
                return second(value)
            except NoSuchFile:
                raise
            except ValueError as other:
                raise ValueError(f"{one} or {str(other).removeprefix('want ')}") from None

    return rule


def _optional(rule: Rule) -> Rule:
    return _either(_null, rule)


def _list_of(each: Rule, what: str) -> Rule:
    def rule(value: Any) -> Any:
        if not isinstance(value, ListConfig) or not value:
            raise ValueError(f"want a list of {what}")
        return _each(each, value)

    return rule


def _step_limit(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < -1 or value == 0:
        raise ValueError("want a whole number from 1 up, or -1 for no limit")
    return value


def _null(value: Any) -> None:
    if value is not None:
        raise ValueError("want null")


# OWNER/NAME, without the ending of a file.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?<!\.json)(?<!\.txt)(?<!\.gz)(?<!\.model)(?<!\.spm)")

_positive = _number(0, with_low=False)
RULES: dict[str, Rule] = {
    "name": _optional(_folder_name),
    "run_dir": _optional(_path),
    "resume": _resume,
    "run": _optional(_path),
    "expect": _optional(_text),
    "seed": _integer(0),
    "split": _choice("train", "val", "test"),
    "save_predictions": _flag,
    "save_coordinator": _flag,
    "check": _flag,
    "shards": _optional(_path),
    "shard_size_mb": _positive,
    "shards_outside": _flag,
    "debug": _flag,
    "backbone.width": _integer(1),
    "backbone.depth": _integer(1),
    "backbone.heads": _integer(1),
    "backbone.ffn_width": _integer(1),
    "backbone.form": _choice("clip", "siglip"),
    **{
        f"backbone.{stream}_{size}": _integer(1)
        for stream in ("vision", "text")
        for size in ("width", "depth", "heads", "ffn_width")
    },
    "backbone.embedding_width": _integer(1),
    "backbone.activation": _choice("gelu", "gelu_tanh", "quick_gelu"),
    "backbone.norm_epsilon": _positive,
    "backbone.patch_size": _integer(1),
    "backbone.image_size": _integer(1),
    "backbone.text_layers": _integer(1),
    "backbone.fusion_layers": _integer(0),
    "backbone.pair": _flag,
    "backbone.merge_from": _integer(0),
    "backbone.token_types": _integer(1),
    "backbone.encoder_token": _integer(-1),
    "backbone.vocabulary_size": _integer(5),
    "backbone.text_positions": _integer(5),
    "backbone.max_text_length": _integer(3),
    "backbone.drop_path": _number(0, 1, with_high=False),
    "backbone.image_mean": _numbers(_number(0, 1), "[0.5,0.5,0.5]"),
    "backbone.image_std": _numbers(_positive, "[0.5,0.5,0.5]"),
    "backbone.checkpoint": _optional(_weights),
    "backbone.checkpoint_key": _optional(_text),
    "backbone.tokenizer": _optional(_tokenizer),
    "backbone.tokenizer_kind": _choice("sentencepiece", "clip", "bert", "siglip"),
    "backbone.text_cleaning": _choice("none", "blip", "albef"),
    "backbone.max_words": _optional(_integer(1)),
    "backbone.resize": _choice("stretch", "crop"),
    "backbone.interpolation": _choice("bicubic", "bilinear"),
    "adapter.mid_dim": _integer(1),
    "adapter.scale": _positive,
    "adapter.dropout": _number(0, 1, with_high=False),
    "adapter.extractor_vision": _flag,
    "adapter.extractor_text": _flag,
    "adapter.enhancer": _choice("bottleneck", "ffn", "none"),
    "adapter.enhancer_dim": _integer(1),
    "adapter.first_layer": _integer(0),
    "adapter.variant": _choice("standard", "released"),
    "adapter.coordinator": _choice("softmax", "uniform", "top1"),
    "adapter.temperature": _positive,
    "adapter.modules_to_save": _optional(_list_of(_text, "names, such as [tokens]")),
    "adapter.checkpoint": _optional(_path),
    "task.monitor": _text,
    "task.label_smoothing": _number(0, 1, with_high=False),
    "task.blind": _optional(_choice("images", "text")),
    "task.loss": _choice("auto", "softmax", "sigmoid"),
    "task.logit_scale": _either(_choice("fitted", "pretrained"), _positive),
    "task.logit_scale_max": _number(1),
    "task.mask_same_image": _flag,
    "task.rerank": _either(_choice("auto"), _integer(0)),
    "task.rerank_cosine": _flag,
    "task.matching_negatives": _choice("own", "all"),
    "task.queue_size": _optional(_integer(1)),
    "task.momentum": _number(0, 1),
    "task.distillation": _number(0, 1),
    "task.distillation_epochs": _number(0),
    "data.root": _optional(_path),
    "data.annotations": _optional(_annotations),
    "data.columns": _optional(_columns),
    "data.val_share": _optional(_number(0, 1, with_low=False, with_high=False)),
    "data.skip_bad_rows": _integer(0),
    "data.skip_bad_rows_in_eval": _flag,
    "data.images": _optional(_text),
    "data.shards": _optional(_path),
    "data.domain": _choice("source", "target"),
    "data.batch_size": _integer(1),
    "data.eval_batch_size": _integer(1),
    "data.num_workers": _either(_choice("auto"), _integer(0)),
    "data.max_bad_images": _integer(0),
    "data.exif": _flag,
    "data.background": _optional(_colour),
    "data.randaugment": _flag,
    "data.randaugment_magnitude": _integer(0, 10),
    "data.crop_scale": _numbers(_number(0, 1, with_low=False), "[0.5,1.0]"),
    "data.horizontal_flip": _flag,
    "data.drop_last": _flag,
    "data.one_k": _flag,
    "data.classes": _optional(_classes),
    "data.swap_images": _flag,
    "optim.lr": _either(_choice("auto"), _positive),
    "optim.weight_decay": _number(0),
    "optim.betas": _numbers(_number(0, 1, with_high=False), "[0.9,0.999]"),
    "optim.eps": _positive,
    "optim.layer_decay": _number(0, 1, with_low=False),
    "optim.logit_scale_factor": _positive,
    "optim.warmup_epochs": _number(0),
    "optim.warmup_steps": _optional(_integer(0)),
    "optim.min_lr": _number(0),
    "trainer.accelerator": _choice("cpu", "gpu"),
    "trainer.devices": _either(_choice("auto"), _integer(1)),
    "trainer.num_nodes": _integer(1),
    "trainer.strategy": _choice("auto", "ddp", "fsdp"),
    "trainer.precision": _precision,
    "trainer.threads": _either(_choice("auto"), _integer(1)),
    "trainer.max_epochs": _integer(1),
    "trainer.max_steps": _step_limit,
    "trainer.accumulate_grad_batches": _integer(1),
    "trainer.gradient_clip_val": _optional(_positive),
    "trainer.check_val_every_n_epoch": _integer(1),
    "trainer.log_every_n_steps": _integer(1),
    "training.nonfinite": _choice("stop", "skip"),
    "training.collapsed": _choice("warn", "stop"),
    "training.zero_shot": _flag,
    "training.find_lr": _flag,
    "training.ema_decay": _optional(_number(0, 1, with_low=False, with_high=False)),
    "training.checkpoint_every_n_steps": _optional(_integer(1)),
    "training.monitor": _text,
    "training.requeue": _flag,
    "training.requeue_signal": _choice("USR1", "USR2"),
    "launcher.jobs": _integer(1),
    "launcher.gpus": _optional(_list_of(_integer(0), "GPUs, such as [0,1]")),
    "launcher.partition": _optional(_text),
    "launcher.timeout_min": _integer(1),
    "launcher.cpus_per_task": _integer(1),
    "launcher.gpus_per_node": _optional(_integer(1)),
    "launcher.mem_gb": _optional(_integer(1)),
    "launcher.array_parallelism": _integer(1),
    "launcher.signal_delay_s": _integer(0),
    "launcher.requeue": _flag,
    "tune.trials": _integer(1),
    "tune.objective": _optional(_text),
    "tune.sampler": _choice("tpe", "random"),
    "tune.pruner": _choice("median", "hyperband", "none"),
    "tune.startup_trials": _integer(0),
    "tune.warmup_epochs": _integer(0),
    "tune.reduction_factor": _integer(2),
    "tune.seed": _integer(0),
    "figures": _optional(_list_of(_text, "metrics, such as [val/mean_recall,test/i2t_r1]")),
    "sort": _optional(_text),
    "format": _choice("markdown", "csv"),
    "output": _optional(_path),
    "callbacks.early_stopping_patience": _optional(_integer(1)),
    "callbacks.progress_bar": _flag,
    "logger.project": _project,
    "logger.entity": _optional(_text),
    "logger.mode": _choice("online", "offline", "disabled"),
    "logger.examples": _integer(0),
    "logger.log_adapter": _flag,
}

# Of CLIP and SigLIP these may be null: they are as the files of the weights say.
SAID_BY_WEIGHTS = frozenset(
    f"backbone.{name}"
    for name in (
        *(f"{stream}_{size}" for stream in ("vision", "text") for size in ("width", "depth", "heads", "ffn_width")),
        *("embedding_width", "patch_size", "image_size", "vocabulary_size", "text_positions", "max_text_length"),
        *("activation", "norm_epsilon", "image_mean", "image_std", "resize", "interpolation"),
    )
)


# Of an adapter of any class, what is ours: the other keys are its class's own.
_OF_ANY_ADAPTER = ("adapter.checkpoint", "adapter.modules_to_save")


def is_ours(target: object) -> bool:
    """Whether a class is of this package, going by its dotted name; where none is named, it is."""
    return target is None or str(target).startswith("mwa_lightning.")


def rule_of(config: Mapping[Any, Any], key: str) -> Rule | None:
    """The rule of a key, if it has one: a class from elsewhere may mean something else by the same name."""
    group = key.partition(".")[0]
    node = config.get(group) if group in ("adapter", "logger") else None
    if isinstance(node, Mapping | DictConfig) and not is_ours(node.get("_target_")) and key not in _OF_ANY_ADAPTER:
        return None
    return RULES.get(key)


def check_values(config: DictConfig) -> None:
    """Check every value by its rule; the first that fails is a ConfigError that says what is wanted."""
    for key in RULES:
        rule = rule_of(config, key)
        if rule is not None and _has(config, key):
            value = OmegaConf.select(config, key)
            if value is None and key in SAID_BY_WEIGHTS and "form" in config.backbone:
                continue
            try:
                OmegaConf.update(config, key, rule(value), merge=False)
            except ValueError as error:
                shown = "null" if value is None else value
                raise ConfigError(f"{key}={shown}: {error}") from error


def as_typed(key: str, value: Any, typed: str) -> Any:
    """What was typed where a key wants a text and the grammar made something else of it: of 007, 1e3, true, [a]."""
    if isinstance(value, str) or value is None or key not in RULES:
        return value
    try:
        text = RULES[key]("1e3")  # which no rule for numbers takes
        if isinstance(value, list | dict):
            RULES[key](OmegaConf.create(value))
            return value
    except ValueError:
        if not isinstance(value, list | dict):
            return value
        try:
            text = RULES[key](typed)
        except ValueError:
            return value
    return typed if isinstance(text, str) else value


def _has(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and name in node
