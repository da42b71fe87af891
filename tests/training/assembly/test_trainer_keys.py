"""Every argument of Lightning's Trainer: it works, or it is refused with the reason."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
from omegaconf import DictConfig, OmegaConf

from mwa_lightning.errors import ConfigError
from mwa_lightning.training.assembly.trainer_keys import REFUSED, SET_HERE, check_trainer_keys
from mwa_lightning.training.evaluate import evaluate
from mwa_lightning.training.fit import fit

MakeConfig = Callable[..., DictConfig]

# What changes neither which samples a metric is of nor which weights, or is a key of configs/trainer.
WORKING = frozenset(
    {
        *("accelerator", "accumulate_grad_batches", "check_val_every_n_epoch", "devices", "gradient_clip_algorithm"),
        *("gradient_clip_val", "limit_train_batches", "log_every_n_steps", "max_epochs", "max_steps", "max_time"),
        *("min_epochs", "min_steps", "num_nodes", "precision", "strategy"),
        *("benchmark", "detect_anomaly", "deterministic", "enable_autolog_hparams", "inference_mode", "profiler"),
        "sync_batchnorm",
    }
)


def test_check__every_argument_was_thought_of() -> None:
    assert inspect.signature(pl.Trainer).parameters.keys() == SET_HERE | REFUSED.keys() | WORKING


@pytest.mark.parametrize("key", [f"{key}={value}" for key in REFUSED for value in ("1", "true", "0.5", "7")])
def test_check__refused_with_the_reason(key: str) -> None:
    config = OmegaConf.from_dotlist([f"trainer.{key}"])
    with pytest.raises(ConfigError, match=rf"^trainer\.{key.partition('=')[0]}=\S+: .{{20}}"):
        check_trainer_keys(config)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, (values, _) in REFUSED.items() for value in values])
def test_check__values_that_do_nothing(key: str, value: object) -> None:
    check_trainer_keys(OmegaConf.create({"trainer": {key: value}}))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("limit_train_batches=0", "nothing would train"),
        ("limit_train_batches=0.01", "Please increase the `limit_train_batches`"),
        ("limit_train_batches=-3", "limit_train_batches"),
        ("profiler=none_such", "can only be one of"),
        ("gradient_clip_algorithm=half", "Allowed algorithms"),
        ("max_time=soon", "is not a valid duration"),
        ("max_time=00:00:00:00", "was over before the first step"),
    ],
)
def test_fit__values_that_lightning_does_not_take(
    key: str, message: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"^trainer.*{message}"):
        fit(make_config(f"+trainer.{key}" if ":" not in key else f"+trainer.max_time='{key.partition('=')[2]}'"))
    assert not (tmp_path / "run").exists()


def test_fit__trains_on_a_part_and_measures_the_whole(make_config: MakeConfig, tmp_path: Path) -> None:
    trained = fit(make_config("+trainer.limit_train_batches=2", "+trainer.max_time={hours: 1}", "split=val"))
    adapter = f"adapter.checkpoint={tmp_path / 'run' / 'adapter.safetensors'}"
    measured = evaluate(make_config(adapter, "split=val", command="evaluate", run="again"))
    of_val = {name: value for name, value in measured.items() if name.startswith("val/")}
    assert {name: trained[name] for name in of_val} == of_val
