"""`mwa-train`: adapt a backbone and evaluate it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mwa_lightning.cli.command import Command, run
from mwa_lightning.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mwa_lightning.cli.config.composing import Request

_USAGE = """
mwa-train [group=choice ...] [key=value ...]
Adapt a frozen vision-language model to retrieval or to statements about images; leave a run directory.

  mwa-train                               the demo: MultiWay-Adapter on a small built-in data set
  mwa-train experiment=scenes_full        another experiment
  mwa-train experiment=mwa_beit3_base_coco data.root=DIR backbone.checkpoint=FILE backbone.tokenizer=FILE
  mwa-train adapter=head_only data=pairs data.root=DIR optim.lr=3e-4
  mwa-train --multirun optim.lr=1e-3,3e-3 adapter=mwa,head_only [run_dir=FOLDER] [launcher=local|slurm]
                                          every combination, a run each; resumes the sweep in FOLDER
"""
_MAIN_KEYS = (
    "run_dir",
    "resume",
    "seed",
    "split",
    "save_predictions",
    "backbone.checkpoint",
    "backbone.tokenizer",
    "backbone.image_size",
    "adapter.checkpoint",
    "adapter.first_layer",
    "adapter.mid_dim",
    "adapter.enhancer",
    "data.root",
    "data.shards",
    "data.batch_size",
    "data.num_workers",
    "data.max_bad_images",
    "optim.lr",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.precision",
    "trainer.threads",
    "training.checkpoint_every_n_steps",
    "training.find_lr",
    "training.nonfinite",
    "training.collapsed",
    "debug",
)
_DEMO = "scenes_mwa"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    command = Command(
        name="mwa-train",
        config_name="train",
        compose=_compose,
        execute=_execute,
        usage=_USAGE,
        main_keys=_MAIN_KEYS,
        listens=True,
        sweep=_sweep,
        complete=_complete,
    )
    return run(command, argv)


def _request(arguments: list[str]) -> Request:
    """What the words ask for: the demo, where no part of a run is chosen."""
    from mwa_lightning.cli.config.composing import read_request
    from mwa_lightning.cli.config.search_path import current

    request = read_request(arguments, config_name="train")
    of_defaults = {word.lstrip("+~").partition("=")[0].partition("@")[0] for word in request.defaults}
    if "launcher" in of_defaults or any(key.partition(".")[0] == "launcher" for key in request.values):
        raise ConfigError("launcher=...: only a sweep has one; add --multirun")
    parts = {"backbone", "adapter", "task", "data", "experiment"}
    if current().config_name is None and not parts & (request.choices.keys() | of_defaults):
        request.choices["experiment"] = _DEMO
    return request


def _complete(arguments: list[str]) -> list[str]:
    """The words of a run, with the one that stands for none."""
    experiment = _request(arguments).choices.get("experiment")
    return [*arguments, f"experiment={experiment}"] if experiment == _DEMO else arguments


def _compose(arguments: list[str]) -> DictConfig:
    from mwa_lightning.cli.adopting import adopt, recomposing
    from mwa_lightning.cli.config.composing import apply, compose_groups

    request = _request(arguments)
    config = compose_groups("train", request.choices, request.defaults)
    config = adopt(config, request, recomposing("train", request), evaluation=False)
    apply(config, request)
    return config


def compose_checked(arguments: list[str]) -> DictConfig:
    """The configuration of one of several runs, known to be one that can be carried out."""
    config = _compose(arguments)
    _check(config)
    if config.trainer.get("fast_dev_run"):
        raise ConfigError("trainer.fast_dev_run: tries one run and leaves nothing; try one of the runs alone")
    if config.training.find_lr:
        raise ConfigError(
            "training.find_lr=true: is a test of one run, which then does not train; take one of them alone"
        )
    return config


def _check(config: DictConfig) -> None:
    from mwa_lightning.cli.config.consistency import check_data, check_model, check_task, check_training

    check_model(config)
    check_task(config)
    check_data(config)
    check_training(config)


def _execute(config: DictConfig) -> None:
    _check(config)
    from mwa_lightning.system.signals import listening

    with listening(config.training.requeue_signal) as signals:
        from mwa_lightning.training.fit import fit

        fit(config, signals)


def _sweep(arguments: list[str], show_only: bool) -> None:
    from mwa_lightning.cli.multirun import multirun

    multirun(arguments, compose_checked, show_only=show_only)


if __name__ == "__main__":
    sys.exit(main())
