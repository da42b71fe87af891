"""A training run from its configuration to its last table."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from omegaconf import DictConfig

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.adapters.files.adapter_file import load_adapter
from mwa_lightning.adapters.none import NoAdapter
from mwa_lightning.data.base import SplitDataModule
from mwa_lightning.data.loading.worker_failures import dead_workers_named
from mwa_lightning.errors import ConfigError, NotLearning, UserError
from mwa_lightning.report.tables import closing_table, parts_table
from mwa_lightning.system.code_version import described
from mwa_lightning.system.signals import Signals
from mwa_lightning.system.slurm import batch_job
from mwa_lightning.tasks.base import AdaptationTask
from mwa_lightning.tasks.model import AdaptedModel, parameter_figures, parameter_table
from mwa_lightning.training.assembly.build import adapter_metadata, attach, build_backbone, build_tokenizer, task_class
from mwa_lightning.training.assembly.lavis_texts import settle_texts
from mwa_lightning.training.assembly.settled_weights import settle_weights
from mwa_lightning.training.assembly.setup import (
    directory_of_run,
    evaluate_model,
    further_figures,
    make_data,
    make_task,
    make_trainer,
    remark_on,
    reproducible,
)
from mwa_lightning.training.assembly.smoke_test import batches, of_a_run_or_a_try
from mwa_lightning.training.assembly.trainer_keys import check_trainer_keys, understood
from mwa_lightning.training.callbacks.coordinator import CoordinatorFigures, check_saving
from mwa_lightning.training.callbacks.ema import WeightAverage
from mwa_lightning.training.callbacks.examples import Examples
from mwa_lightning.training.callbacks.from_config import check_callbacks, make_callbacks
from mwa_lightning.training.callbacks.guards import MissingGradientGuard, NonFiniteGuard
from mwa_lightning.training.callbacks.journal import Journal
from mwa_lightning.training.callbacks.run_keeper import Pace, PositionSeeds, Progress, RunKeeper
from mwa_lightning.training.callbacks.stopping import StopAgreement, stopping
from mwa_lightning.training.distributed.cpus import settle_cpus
from mwa_lightning.training.distributed.processes import Processes, gathered, processes_of
from mwa_lightning.training.find_lr import find_lr
from mwa_lightning.training.instantiating import checked
from mwa_lightning.training.lightning_warnings import quiet
from mwa_lightning.training.loggers.base import Outcome
from mwa_lightning.training.loggers.making import TableLogger, check_logger, close, conclude, make_loggers
from mwa_lightning.training.optim import make_scheduler, optimizer_of, own_learning_rate
from mwa_lightning.training.runs import provenance
from mwa_lightning.training.runs.checkpointing import CheckpointFiles
from mwa_lightning.training.runs.console import FILE_ONLY, console, show
from mwa_lightning.training.runs.resuming import (
    beginning_of,
    check_origin,
    check_resume,
    find_checkpoint,
    is_foreign,
    origin_of,
)
from mwa_lightning.training.runs.run_directory import FINISHED, RunDirectory
from mwa_lightning.training.runs.same_files import check_same_files
from mwa_lightning.training.starting import FittedStart
from mwa_lightning.training.watching.advice import advise
from mwa_lightning.training.watching.watch import LearningWatch

log = logging.getLogger(__name__)


def fit(config: DictConfig, signals: Signals | None = None) -> dict[str, float]:
    """Train, evaluate the best epoch, leave a complete run directory; returns what `metrics.json` holds.

    Everything that can be wrong with configuration, files and data is found before the run directory is made.
    A directory that holds an earlier start of the same run is continued from its last checkpoint (see `resuming`).
    A try (`trainer.fast_dev_run`) leaves nothing and returns nothing; `training.find_lr` leaves what `find_lr` does.

    Raises ConfigError, DataError or CheckpointError for what the user can mend, TrainingError if the run
    cannot go on, StorageError if its directory cannot be written, Stopped if one of the `signals` came.
    """
    stop = StopAgreement(signals or Signals())
    with (
        quiet(),
        of_a_run_or_a_try(config) as config,
        ExitStack() as after_all,
        processes_of(config) as processes,
        console(rank=processes.rank),
        reproducible(config),
    ):
        config = processes.agree_on_config()
        settle_weights(config)
        settle_texts(config)
        check_trainer_keys(config, trains=True)
        checked(config.adapter, group="adapter", base=AdapterMethod)
        check_logger(config.logger)
        check_callbacks(config.callbacks)
        # Until no process of the run is left.
        run = after_all.enter_context(directory_of_run(config, processes, name=config.name or "run", job=batch_job()))
        with stopping(config, stop, processes, run):
            if processes.first and check_resume(config, run):
                run.lock.take()
            begun = beginning_of(config, run) if processes.first else None
            config, cpus = settle_cpus(config, processes, begun=begun)
            tokenizer = build_tokenizer(config)
            data = make_data(config, tokenizer, processes, stages=("fit", "test"))
            stop.check(processes)
            check_same_files(config, data)
            backbone, heads = build_backbone(config, task_class(config).data_shape(data))
            model = attach(config, backbone, heads, start=True)
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise ConfigError("nothing trains with this adapter: choose another, or evaluate with mwa-eval")
            check_saving(config, model.adapter)
            task = make_task(config, model, configure=_configure(config))
            task.check_share(data.batch_size)
            check_origin(config, _trained(task))
            stop.check(processes)
            if config.training.get("find_lr"):
                log.info("%s", cpus)
                find_lr(config, task, data, run, processes, stop)
                return {}
            run.create()
            started = processes.first and run.check(config)  # another process may have begun it meanwhile, and ended
            if not started:
                run.write_config(config)
                after_all.enter_context(run.removed_at(UserError.exit_code, unless="checkpoints/*.ckpt"))
            with run.logging(), dead_workers_named():
                if batches(config):
                    log.warning("trainer.fast_dev_run: only a try; metrics are of a few samples, and nothing is kept")
                log.info("run directory: %s", run.path)
                log.info("mwa_lightning %s", described())
                log.info("%s", cpus)
                inputs = _inputs(config, data, model, run) if processes.first else {}
                return _run(config, task, data, run, processes, stop, inputs)


def _run(
    config: DictConfig,
    task: AdaptationTask[Any, Any],
    data: SplitDataModule[Any],
    run: RunDirectory,
    processes: Processes,
    stop: StopAgreement,
    inputs: provenance.Provenance,
) -> dict[str, float]:
    """The part of a run that writes."""
    model: AdaptedModel = task.model
    # A server of files may not show all ranks the same just now, and they would wait for each other for ever.
    earlier = processes.share(run.read_metrics())
    figures = {name: value for name, value in earlier.items() if name.startswith("zero_shot/")}
    if config.training.zero_shot and not figures:
        figures = _zero_shot(config, data, run, processes, stop)
        run.write_metrics(figures)
    figures |= parameter_figures(model) | data.figures
    show(parts_table(parameter_table(model)))

    pace = Pace()
    watch = LearningWatch(action=config.training.collapsed, advise=partial(advise, config))
    loggers = make_loggers(config, run)
    stop.close = partial(close, loggers)
    try:
        keeper = _train(config, task, data, run, processes, [pace, watch], stop, loggers)
    except NotLearning as error:
        log.error("%s", error, extra=FILE_ONLY)  # the command says it on the terminal
        run.write_metrics(figures | watch.figures)
        raise
    processes.wait()  # until the file is there
    load_adapter(run.adapter, model, fingerprint=model.backbone.fingerprint)
    figures |= evaluate_model(
        config,
        model,
        data,
        run,
        processes,
        prefix=config.split,
        predictions=config.save_predictions,
        coordinator=config.save_coordinator,
        callbacks=[stop],
    )
    if count := batches(config):
        stop.close = None
        close(loggers)
        log.info(
            "trainer.fast_dev_run: training, validation and evaluation went through, with batches of each: %d", count
        )
        return {}
    figures |= watch.figures | further_figures(figures, data, split=config.split)
    figures = keeper.best_figures | figures  # what was measured now counts, should the split be val
    figures[FINISHED] = keeper.seconds
    # A run that was through already makes no steps: it keeps the figure that it had.
    step = earlier.get("time/step_s") if math.isnan(pace.median) else pace.median
    if step is not None:
        figures["time/step_s"] = step
    run.write_metrics(figures)
    if processes.first:
        measured: dict[str, tuple[str, Path | None]] = {
            "val": ("val", run.adapter),
            config.split: (config.split, run.adapter),
            "zero_shot": (config.split, None),
        }
        of = {
            name: provenance.of_metrics(inputs, split=split, adapter=file)
            for name, (split, file) in measured.items()
            if any(figure.startswith(f"{name}/") for figure in figures)
        }
        provenance.write(run, inputs, of)
    conclude(loggers, Outcome(run, figures, adapter=keeper.metadata, step=task.global_step - 1))
    remark = remark_on(figures, data, split=config.split, training=watch.remark)
    show(closing_table(figures, split=config.split, remark=remark))
    stop.close = None
    close(loggers)
    data.ledger.merge(gathered(data.ledger.news))  # with the first, whose loggers may have waited for a server
    data.ledger.sum_up()
    log.info("run directory: %s", run.path)
    return figures


def _inputs(
    config: DictConfig, data: SplitDataModule[Any], model: AdaptedModel, run: RunDirectory
) -> provenance.Provenance:
    """What the run works on, known to be what its earlier starts, and the run that it resumes, worked on."""
    inputs = provenance.inputs_of(config, data, model, ["train", "val", config.split])
    origin = origin_of(config)
    if origin is not None and is_foreign(origin, run.checkpoints):
        home = RunDirectory(origin.parent.parent)
        if home.config.is_file():
            provenance.check_inputs(home, inputs, resumed=origin)
    provenance.begin(run, inputs)
    return inputs


def _zero_shot(
    config: DictConfig, data: SplitDataModule[Any], run: RunDirectory, processes: Processes, stop: StopAgreement
) -> dict[str, float]:
    """The figures of backbone and heads as they were read, without the adapter."""
    log.info("zero-shot evaluation on the %s split", config.split)
    plain, heads = build_backbone(config)
    untouched = task_class(config).make_model(plain, NoAdapter(), heads)
    return evaluate_model(config, untouched, data, run, processes, prefix="zero_shot", callbacks=[stop])


def _train(
    config: DictConfig,
    task: AdaptationTask[Any, Any],
    data: SplitDataModule[Any],
    run: RunDirectory,
    processes: Processes,
    watching: Sequence[pl.Callback],
    stop: StopAgreement,
    loggers: list[Logger],
) -> RunKeeper:
    """Fit, from the last checkpoint if there is one; then `adapter.safetensors` holds the best epoch."""
    model: AdaptedModel = task.model
    table = loggers[0]
    assert isinstance(table, TableLogger)
    files = CheckpointFiles(run.checkpoints)
    keeper = RunKeeper(
        run=run,
        files=files,
        table=table,
        monitor=config.training.monitor,
        metadata=adapter_metadata(config, model),
        every_n_steps=config.training.checkpoint_every_n_steps,
        patience=config.callbacks.early_stopping_patience,
        stop=stop,
    )
    bar = bool(config.callbacks.progress_bar) and sys.stdout.isatty()
    trainer = make_trainer(
        config,
        run,
        processes,
        callbacks=_callbacks(config, model, watching, keeper, bar=bar),
        loggers=loggers,
        plugins=[files],
        progress_bar=bar,
    )
    if config.trainer.accumulate_grad_batches > 1 and task.contrasts_one_batch:
        log.warning(
            "trainer.accumulate_grad_batches=%d: the contrastive loss has the negatives of one batch only, "
            "accumulation adds none",
            config.trainer.accumulate_grad_batches,
        )
    checkpoint = processes.share(find_checkpoint(config, files, _trained(task)))
    if checkpoint is None:
        # Figures of an earlier start that left no checkpoint are made again.
        table.cut(0)
    else:
        log.info("resuming from %s", checkpoint)
    keeper.resumed_from = checkpoint
    _log_settings(loggers, run)
    trainer.precision_plugin.convert_module(task)  # Lightning would do so after it has read the checkpoint
    with understood():
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
    if not trainer.global_step:
        raise ConfigError(
            f"trainer.max_time={config.trainer.get('max_time')}: was over before the first step; raise it"
        )
    keeper.leave_adapter(trainer, task)
    return keeper


def _callbacks(
    config: DictConfig, model: AdaptedModel, watching: Sequence[pl.Callback], keeper: RunKeeper, *, bar: bool
) -> list[pl.Callback]:
    """All callbacks; the order matters: the keeper, which saves, sees what the others have done."""
    callbacks: list[pl.Callback] = [
        Journal(),
        FittedStart(seed=config.seed),
        PositionSeeds(seed=config.seed),
        MissingGradientGuard(declared_unused=model.adapter.declared_unused),
        NonFiniteGuard(action=config.training.nonfinite),
        *watching,
        keeper.stop,
        CoordinatorFigures(picture=keeper.run.coordinator_picture),
    ]
    if config.logger.get("examples"):
        callbacks.append(Examples(count=config.logger.examples))
    callbacks += make_callbacks(config.callbacks)
    if config.training.ema_decay is not None:
        callbacks.append(WeightAverage(decay=config.training.ema_decay))
    if bar:
        from lightning.pytorch.callbacks import RichProgressBar

        callbacks.append(RichProgressBar(leave=False))
    else:
        callbacks.append(Progress())
    return [*callbacks, keeper]


def _configure(config: DictConfig) -> Callable[[AdaptationTask[Any, Any]], OptimizerLRScheduler]:
    """What makes the optimizer and the schedule once the trainer knows how long it will run."""

    def configure(task: AdaptationTask[Any, Any]) -> OptimizerLRScheduler:
        settings = config.optim
        rate = settings.lr
        if rate == "auto":
            rate = own_learning_rate(task.model)
            log.info("optim.lr=auto: %.3g", rate)
        optimizer = optimizer_of(settings, task.model, lr=rate)
        total = int(task.trainer.estimated_stepping_batches)
        per_epoch = math.ceil(task.trainer.num_training_batches / task.trainer.accumulate_grad_batches)
        scheduler = make_scheduler(
            optimizer,
            lr=rate,
            min_lr=settings.min_lr,
            total_steps=total,
            warmup_epochs=settings.warmup_epochs,
            warmup_steps=settings.warmup_steps,
            steps_per_epoch=per_epoch,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    return configure


def _trained(task: AdaptationTask[Any, Any]) -> list[str]:
    """The names of what trains, as checkpoints have them."""
    return [name for name, parameter in task.named_parameters() if parameter.requires_grad]


def _log_settings(loggers: list[Logger], run: RunDirectory) -> None:
    """Tell the loggers what config.yaml says."""
    if run.writes:
        settings = run.read_config()
        for logger in loggers:
            logger.log_hyperparams(settings)
