"""Trainers, data and tasks from a configuration; what training and evaluation share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from mwa_lightning.data.base import SplitDataModule
from mwa_lightning.data.text.tokenizers import Tokenizer
from mwa_lightning.report.chance import beside, no_better_than_guessing, worse_than_frozen
from mwa_lightning.tasks.base import AdaptationTask
from mwa_lightning.tasks.model import AdaptedModel
from mwa_lightning.training.assembly.build import image_options, task_class
from mwa_lightning.training.assembly.smoke_test import KEY, images_evaluated
from mwa_lightning.training.assembly.trainer_keys import OWN, understood
from mwa_lightning.training.callbacks.coordinator import CoordinatorWeights
from mwa_lightning.training.distributed.fsdp_strategy import FSDP, ShardedStrategy
from mwa_lightning.training.distributed.processes import Processes, WorkerStrategy, with_settings
from mwa_lightning.training.instantiating import instantiate
from mwa_lightning.training.lightning_private import end_epochs_once, leave_signals
from mwa_lightning.training.runs.run_directory import RunDirectory, new_directory


@contextmanager
def directory_of_run(
    config: DictConfig, processes: Processes, *, name: str, job: str | None = None
) -> Iterator[RunDirectory]:
    """The directory of `run_dir`, or by default `./logs/<task>/<name>/<job>`, without a job `.../<time>`.

    So a job that SLURM starts again goes on in its directory. At the end its lock is let go, if it was taken.
    """
    with ExitStack() as stack:
        path = Path("logs") / str(config.task.name) / name
        if config.run_dir is not None:
            path = Path(config.run_dir)
        elif job is not None:
            path /= job
        elif processes.first:
            path = stack.enter_context(new_directory(path))
        run = RunDirectory(processes.agree_on(path), writes=processes.first)
        stack.enter_context(run.lock)
        yield run


def make_data(
    config: DictConfig, tokenizer: Tokenizer, processes: Processes, *, stages: Sequence[str]
) -> SplitDataModule[Any]:
    """The data of a configuration, read and checked for the given stages (`fit`, `test`).

    Raises DataError if something is missing, damaged or empty.
    """
    data: SplitDataModule[Any] = instantiate(
        with_settings(config.data, {"num_workers": config.chosen.num_workers}),
        group="data",
        tokenizer=tokenizer,
        **image_options(config),
        seed=config.seed,
        split=config.split,
    )
    data.only_first = images_evaluated(config)
    processes.in_turn(data.prepare_data)
    for stage in stages:
        data.setup(stage)
    return data


def make_task(
    config: DictConfig,
    model: AdaptedModel,
    *,
    keep_predictions: bool = False,
    configure: Callable[[AdaptationTask[Any, Any]], Any] | None = None,
) -> AdaptationTask[Any, Any]:
    """The task of a configuration around a model."""
    further = task_class(config).data_options(config.data)
    settings = OmegaConf.masked_copy(config.task, [key for key in config.task if key not in ("name", "monitor")])
    task: AdaptationTask[Any, Any] = instantiate(
        settings, group="task", model=model, keep_predictions=keep_predictions, configure=configure, **further
    )
    # Checkpoints hold what trains; their keys are compared before they are loaded.
    task.strict_loading = False
    return task


@contextmanager
def reproducible(config: DictConfig) -> Iterator[None]:
    """On the CPU, use algorithms only that give the same bytes every time."""
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        if config.trainer.accelerator == "cpu":
            torch.use_deterministic_algorithms(True)
            # Filling new memory with NaN is for finding mistakes; it costs time in every step.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def make_trainer(
    config: DictConfig,
    run: RunDirectory,
    processes: Processes,
    *,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
    plugins: Sequence[Any] = (),
    progress_bar: bool = False,
) -> pl.Trainer:
    """Lightning's trainer with our own sampling, checkpoints and summary in place of its."""
    settings = OmegaConf.to_container(config.trainer, resolve=True)
    assert isinstance(settings, dict)
    arguments = {str(key): value for key, value in settings.items() if key != KEY and key not in OWN}
    if arguments["strategy"] == FSDP:
        # Tensors that are made in inference mode, as gathered weights would be, cannot be trained with later.
        arguments |= {"strategy": ShardedStrategy(processes), "inference_mode": False}
    elif processes.count > 1 or arguments["strategy"] == "ddp":
        arguments["strategy"] = WorkerStrategy(processes)
    # Lightning would take SLURM's environment even for one task, which starts the further processes itself.
    extra = [processes.environment, *plugins]
    if arguments["precision"] == "16-mixed":
        from mwa_lightning.training.assembly.precision import GatedMixedPrecision

        del arguments["precision"]
        extra.append(GatedMixedPrecision(device="cuda"))
    with understood(TypeError, ValueError):
        trainer = pl.Trainer(
            **arguments,
            callbacks=list(callbacks),
            logger=list(loggers) or False,
            plugins=extra,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress_bar,
            num_sanity_val_steps=0,
            default_root_dir=run.path,
        )
    leave_signals(trainer)
    end_epochs_once(trainer)
    return trainer


def remark_on(
    figures: Mapping[str, float], data: SplitDataModule[Any], *, split: str, training: str | None = None
) -> str | None:
    """What has to be said of a result beside its numbers, a line each.

    That is what was wrong in `training`, that guessing gives as much, or that the frozen model does better.
    """
    tested = data.split(split)
    sizes = {"images": len(tested.pictures), "samples": len(tested)}
    lines = [
        training,
        no_better_than_guessing(figures, split=split, **sizes),
        worse_than_frozen(figures, split=split, images=sizes["images"]),
    ]
    said = [line for line in lines if line is not None]
    return "\n".join(said) if said else None


def further_figures(figures: Mapping[str, float], data: SplitDataModule[Any], *, split: str) -> dict[str, float]:
    """What stands beside the metrics of a split: those of guessing, and what was gained."""
    tested = data.split(split)
    return beside(figures, split=split, images=len(tested.pictures), samples=len(tested))


def evaluate_model(
    config: DictConfig,
    model: AdaptedModel,
    data: SplitDataModule[Any],
    run: RunDirectory,
    processes: Processes,
    *,
    prefix: str,
    predictions: bool = False,
    coordinator: bool = False,
    callbacks: Sequence[pl.Callback] = (),
) -> dict[str, float]:
    """Figures of a model on the configured split, under `prefix/`.

    `predictions` writes what they are made of too, `coordinator` the weights that ModeX's experts get at every token.
    """
    task = make_task(config, model, keep_predictions=predictions)
    watching = [CoordinatorWeights(run.coordinator)] if coordinator else []
    trainer = make_trainer(config, run, processes, callbacks=[*callbacks, *watching])
    trainer.test(task, datamodule=data, verbose=False)
    if predictions and trainer.is_global_zero:
        task.write_predictions(run.predictions, data)
    return {
        f"{prefix}/{name.removeprefix('test/')}": float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("test/")
    }
