"""Which values fit together: what no single key can tell, still before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from mwa_lightning.errors import CheckpointError, ConfigError, DataError


def check_model(config: DictConfig) -> None:
    """Check the backbone against itself and the adapter against the backbone."""
    backbone = config.backbone
    _image_fits_patches(backbone)
    if backbone.width % backbone.heads:
        raise ConfigError(f"backbone.heads={backbone.heads}: must divide backbone.width={backbone.width}")
    first_layer = config.adapter.get("first_layer", 0)
    if first_layer >= backbone.depth:
        raise ConfigError(
            f"adapter.first_layer={first_layer}: {backbone.name} has layers 0 to {backbone.depth - 1}, "
            "so no layer would be adapted"
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
        if file is not None and file != "random" and "://" not in file and not Path(file).is_file():
            raise CheckpointError(f"{key}={file}: there is no such file")


def check_data(config: DictConfig) -> None:
    """Check that the data set can be there; what is in it is looked at by those who read it."""
    data = config.data
    if data.layout == "scenes":  # made where it is missing
        return
    if data.root is None:
        raise DataError(f"data={data.layout} needs data.root=DIR, the folder of the data set")
    if not Path(data.root).exists():
        raise DataError(f"data.root={data.root}: there is no such folder")


def check_training(config: DictConfig) -> None:
    """Check what only training needs."""
    trainer = config.trainer
    if config.adapter._target_.endswith(".NoAdapter"):
        raise ConfigError("adapter=none trains nothing: choose another adapter, or evaluate with mwa-eval")
    processes = 1 if trainer.devices == "auto" else trainer.devices * trainer.num_nodes
    if trainer.devices != "auto" and config.data.batch_size * processes < 2:
        raise ConfigError(
            f"data.batch_size={config.data.batch_size} on {processes} process makes a global batch of one, "
            "which has nothing to contrast; take at least 2"
        )
    check_precision(config)


def check_precision(config: DictConfig) -> None:
    """Refuse float16 where there is none."""
    if config.trainer.precision == "16-mixed" and config.trainer.accelerator == "cpu":
        raise ConfigError("trainer.precision=16-mixed needs trainer=gpu; on the processor take bf16-mixed or 32")


def _image_fits_patches(backbone: DictConfig) -> None:
    size, patch = backbone.image_size, backbone.patch_size
    if size % patch:
        below = size // patch * patch
        near = f"{below} or {below + patch}" if below else f"{patch}"
        raise ConfigError(f"backbone.image_size={size}: not a multiple of the patch size {patch}; take {near}")
