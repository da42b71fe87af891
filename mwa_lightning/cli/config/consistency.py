"""Which values fit together: what no single key can tell, still before anything heavy is imported."""

from __future__ import annotations

import math
import os
from importlib.metadata import version
from pathlib import Path

from omegaconf import DictConfig
from packaging.version import Version

from mwa_lightning.cli.config.schema import is_ours
from mwa_lightning.cli.config.suggesting import did_you_mean, path_meant
from mwa_lightning.errors import CheckpointError, ConfigError, DataError
from mwa_lightning.system.regular_files import NotAFile, require_file
from mwa_lightning.tasks.rules import rules_of

LEAST_FSDP = "2.7"  # of torch: the first whose `fully_shard` can leave scalars whole
BUILT_IN = ("scenes", "scenes_nlvr2")  # made where they are missing


def check_model(config: DictConfig) -> None:
    """Check the backbone against itself and the adapter against the backbone."""
    backbone = config.backbone
    _image_fits_patches(backbone)
    # A transformer for all streams, or one for each: width, or vision_width and text_width, and so on.
    for key in backbone:
        if str(key).endswith("heads"):
            width = str(key).removesuffix("heads") + "width"
            if backbone[key] is None or backbone[width] is None:
                continue  # as the weights say
            if backbone[width] % backbone[key]:
                raise ConfigError(f"backbone.{key}={backbone[key]}: must divide backbone.{width}={backbone[width]}")
    depths = [backbone[key] for key in backbone if str(key).endswith("depth")]
    depth = max(depths) if None not in depths else math.inf
    first_layer = config.adapter.get("first_layer", 0)
    if is_ours(config.adapter._target_) and first_layer >= depth:
        raise ConfigError(
            f"adapter.first_layer={first_layer}: {backbone.name} has layers 0 to {depth - 1}, "
            f"so no layer would be adapted; take at most {depth - 1}"
        )
    if backbone.checkpoint is None:
        raise CheckpointError(
            f"backbone={backbone.name} has no weights: give backbone.checkpoint=FILE ({backbone.official}), "
            "or backbone.checkpoint=random"
        )
    if backbone.tokenizer is None:
        raise CheckpointError(
            f"backbone={backbone.name} has no tokenizer: give backbone.tokenizer=FILE ({backbone.official})"
        )
    for key, file in (
        ("backbone.checkpoint", backbone.checkpoint),
        ("backbone.tokenizer", backbone.tokenizer),
        ("adapter.checkpoint", config.adapter.checkpoint),
    ):
        if file is None or file == "random" or "://" in file:
            continue
        if not os.path.exists(file):  # noqa: PTH110 (False also of a name that is too long)
            raise CheckpointError(f"{key}={file}: there is no such file.{path_meant(file)}")
        try:
            require_file(file)
        except NotAFile as error:
            raise CheckpointError(f"{key}={file}: {error.strerror}") from error


def check_task(config: DictConfig) -> None:
    """Check the task against the data."""
    rules_of(config).check_data(config)


def check_data(config: DictConfig) -> None:
    """Check that the data set can be there; what is in it is looked at by those who read it."""
    from mwa_lightning.data.storage.availability import readable

    data = config.data
    with readable():
        if data.shards is not None:
            if not Path(data.shards).is_dir():
                raise DataError(f"data.shards={data.shards}: there is no such folder; mwa-prepare shards=DIR makes it")
            return
        there = data.root is not None and Path(data.root).exists()
        if there and os.path.isfile(Path(data.root, "index.safetensors")):  # noqa: PTH113 (none where nobody may look)
            raise DataError(f"data.root={data.root} holds shards of a data set: give that folder as data.shards")
        if data.layout in BUILT_IN:
            return
        if data.root is None:
            raise DataError(f"data={data.layout} needs data.root=DIR, the folder of the data set, or data.shards=DIR")
        if not there:
            raise DataError(f"data.root={data.root}: there is no such file or folder.{path_meant(data.root)}")


def check_training(config: DictConfig) -> None:
    """Check what only training needs."""
    trainer = config.trainer
    if config.adapter._target_.endswith(".NoAdapter"):
        raise ConfigError("adapter=none trains nothing: choose another adapter, or evaluate with mwa-eval")
    if config.training.get("find_lr"):
        _check_range_test(config)
    processes = None if trainer.devices == "auto" else trainer.devices * trainer.num_nodes
    rules = rules_of(config)
    if config.training.zero_shot and not rules.has_zero_shot:
        raise ConfigError(
            f"training.zero_shot=true: task={config.task.name} has no zero-shot metrics, its head is new; set "
            "training.zero_shot=false"
        )
    rules.check_training(config, processes=processes)
    check_precision(config)
    if config.trainer.strategy == "fsdp" and config.task.get("queue_size") is not None:
        raise ConfigError(
            f"task.queue_size={config.task.queue_size}: a momentum queue needs whole weights, which "
            "trainer.strategy=fsdp shards; take trainer.strategy=ddp, or task.queue_size=null"
        )
    check_measured(config, config.training.monitor, key="training.monitor")


def _check_range_test(config: DictConfig) -> None:
    """Refuse a learning-rate range test of what is no run from its beginning."""
    key = "training.find_lr=true"
    if config.trainer.get("fast_dev_run"):
        raise ConfigError(f"{key}: does not go with trainer.fast_dev_run; leave one of them out")
    if config.trainer.strategy == "fsdp":
        raise ConfigError(f"{key}: cannot be had with trainer=fsdp; take trainer=ddp, or fewer layers")
    if config.resume not in ("auto", "never"):
        raise ConfigError(f"{key}: is of a run from its beginning: leave resume={config.resume} out")


def check_adapted(config: DictConfig) -> None:
    """Refuse to evaluate an adapter that nothing has trained: its metrics would pass for those of an adapted model."""
    adapter = config.adapter
    if adapter.checkpoint is None and not adapter._target_.endswith(".NoAdapter"):
        method = adapter._target_.rpartition(".")[2]
        raise CheckpointError(
            f"the adapter ({method}) has no weights: give run=DIR, or adapter.checkpoint=FILE, or take adapter=none"
        )


def check_precision(config: DictConfig) -> None:
    """Refuse precisions that the hardware, the strategy or a moving average cannot have."""
    trainer = config.trainer
    key = f"trainer.precision={trainer.precision}"
    if trainer.precision in ("16-mixed", "64-true") and trainer.strategy == "fsdp":
        # The scaler of 16-mixed would look at one process's part of the gradients only; Lightning has no other FSDP.
        raise ConfigError(f"{key} does not go with trainer.strategy=fsdp: take bf16-mixed or 32")
    if trainer.strategy == "fsdp" and Version(version("torch")) < Version(LEAST_FSDP):
        raise ConfigError(
            f"trainer.strategy=fsdp: needs torch {LEAST_FSDP} or newer, and {version('torch')} is installed; take "
            "trainer.strategy=ddp, or install a newer one"
        )
    if trainer.precision == "16-mixed" and trainer.accelerator == "cpu":
        raise ConfigError(f"{key} needs trainer.accelerator=gpu; on the CPU take bf16-mixed or 32")
    averaged = [
        name
        for name, value in (
            ("training.ema_decay", config.training.get("ema_decay")),
            ("task.queue_size", config.task.get("queue_size")),
        )
        if value is not None
    ]
    if trainer.precision == "bf16-true" and averaged:
        raise ConfigError(
            f"{key}: the moving average of {averaged[0]} takes steps that are 0 in bfloat16; take bf16-mixed, or "
            f"{averaged[0]}=null"
        )


def check_measured(config: DictConfig, figure: str, *, key: str) -> None:
    """Refuse to choose by a metric that there will not be, or of which less is better: the highest is the best."""
    rules = rules_of(config)
    if not rules.is_measured(config, figure):
        metrics = rules.metrics(config)
        hint = did_you_mean(figure, metrics)
        raise ConfigError(f"{key}={figure}: nothing can be chosen by it.{hint} Take one of {', '.join(metrics)}")


def _image_fits_patches(backbone: DictConfig) -> None:
    size, patch = backbone.image_size, backbone.patch_size
    if size is None or patch is None:
        return  # as the weights say
    if patch > size:
        raise ConfigError(
            f"backbone.image_size={size}: less than one patch (backbone.patch_size={patch}, which has to be that of "
            f"the weights); take backbone.image_size={patch} or a multiple"
        )
    if backbone.get("form") == "siglip":
        return  # as upstream: 384 px have 27 patches of 14 px
    if size % patch:
        below = size // patch * patch
        raise ConfigError(
            f"backbone.image_size={size}: not a multiple of backbone.patch_size={patch}; "
            f"take {below} or {below + patch}"
        )
