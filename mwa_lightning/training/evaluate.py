"""An evaluation from its configuration to its table."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mwa_lightning.adapters.full import FullFineTuning
from mwa_lightning.adapters.none import NoAdapter
from mwa_lightning.data.loading.worker_failures import dead_workers_named
from mwa_lightning.errors import ConfigError, Interrupted, Stopped, UserError
from mwa_lightning.report.published_results import Facts, check, check_name, compare, warning
from mwa_lightning.report.tables import closing_table, comparison_table
from mwa_lightning.system.signals import Signals, raised_again
from mwa_lightning.tasks.base import AdaptationTask
from mwa_lightning.tasks.model import parameter_figures
from mwa_lightning.tasks.rules import rules_of
from mwa_lightning.training.assembly.build import attach, build_backbone, build_tokenizer, task_class
from mwa_lightning.training.assembly.lavis_texts import settle_texts
from mwa_lightning.training.assembly.settled_weights import settle_weights
from mwa_lightning.training.assembly.setup import (
    directory_of_run,
    evaluate_model,
    further_figures,
    make_data,
    make_task,
    remark_on,
    reproducible,
)
from mwa_lightning.training.assembly.trainer_keys import check_trainer_keys
from mwa_lightning.training.callbacks.coordinator import check_saving
from mwa_lightning.training.callbacks.stopping import StopAgreement
from mwa_lightning.training.distributed.cpus import settle_cpus
from mwa_lightning.training.distributed.processes import gathered, is_lost, processes_of
from mwa_lightning.training.lightning_warnings import quiet
from mwa_lightning.training.runs import provenance
from mwa_lightning.training.runs.console import console, show
from mwa_lightning.training.runs.run_directory import RunDirectory, looked_into
from mwa_lightning.training.runs.same_files import check_same_files

log = logging.getLogger(__name__)


def evaluate(config: DictConfig, signals: Signals | None = None) -> dict[str, float]:
    """Evaluate a model on a split, every sample of it; returns the figures of `metrics.json`.

    The figures stand under the name of the split (`test/i2t_r1`). The directory gets config.yaml,
    metrics.json, train.log and, with `save_predictions`, predictions.safetensors; with `save_coordinator`,
    coordinator.safetensors.

    Raises ConfigError, DataError or CheckpointError for what the user can mend, ExpectationMissed if `expect`
    names a published result and ours lies outside its tolerance, Stopped if one of the `signals` came. What it has
    begun to leave is removed then, and at a user's mistake, unless there are figures.
    """
    stop = StopAgreement(signals or Signals())
    with (
        quiet(),
        _beginning_anew(stop.signals),
        ExitStack() as after_all,
        processes_of(config) as processes,
        console(rank=processes.rank),
        reproducible(config),
    ):
        config = processes.agree_on_config()
        settle_weights(config)
        settle_texts(config)
        expected = config.get("expect")
        if expected is not None:
            check_name(expected, task=config.task.name, gives=rules_of(config).published)
        check_trainer_keys(config)
        # Until no process of the evaluation is left.
        name = f"{config.name or 'run'}_evaluation"
        run = after_all.enter_context(directory_of_run(config, processes, name=name))
        if processes.first:
            _refuse_training_run(run)
            run.check(config)
        config, cpus = settle_cpus(config, processes)
        tokenizer = build_tokenizer(config)
        data = make_data(config, tokenizer, processes, stages=("test",))
        stop.check(processes)
        check_same_files(config, data)
        model = attach(config, *build_backbone(config, task_class(config).data_shape(data)))
        check_saving(config, model.adapter)
        task = make_task(config, model)  # refuses what does not fit before anything is written
        stop.check(processes)
        codes = (UserError.exit_code, Stopped.exit_code, Interrupted.exit_code)
        after_all.enter_context(run.removed_at(*codes, unless=run.metrics.name))
        run.create(checkpoints=False)
        if not processes.first or not run.check(config):  # another process may have begun it meanwhile, and ended
            run.write_config(config)
        with raised_again(stop.signals), run.logging(), dead_workers_named():
            log.info("%s", cpus)
            inputs = provenance.inputs_of(config, data, model, [config.split]) if processes.first else {}
            if processes.first:
                provenance.begin(run, inputs)
            figures = evaluate_model(
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
            figures |= parameter_figures(model) | data.figures
            figures |= further_figures(figures, data, split=config.split)
            run.write_metrics(figures)
            if processes.first:
                file = None if config.adapter.checkpoint is None else Path(config.adapter.checkpoint)
                of = provenance.of_metrics(inputs, split=config.split, adapter=file)
                provenance.write(run, inputs, {config.split: of})
            show(closing_table(figures, split=config.split, remark=remark_on(figures, data, split=config.split)))
            data.ledger.merge(gathered(data.ledger.news))
            data.ledger.sum_up()
            log.info("run directory: %s", run.path)
            if expected is not None:
                images = len(data.split(config.split).pictures)
                comparison = compare(expected, figures, _facts(config, task, images), prefix=f"{config.split}/")
                show(comparison_table(comparison))
                if line := warning(comparison):
                    log.warning("%s", line)
                check(comparison)
        return figures


@contextmanager
def _beginning_anew(signals: Signals) -> Iterator[None]:
    """Say that nothing is left to go on with. Raises Stopped, also where others have gone of the same signal."""
    try:
        with raised_again(signals):
            yield
    except (Stopped, RuntimeError) as error:
        if not isinstance(error, Stopped) and (signals.noted is None or not is_lost(error)):
            raise
        why = "another rank's signal" if signals.noted is None else signals.noted.name
        raise Stopped(f"stopped by {why}; start the same command again, an evaluation begins anew") from error


def _refuse_training_run(run: RunDirectory) -> None:
    """Raise ConfigError if the figures of a training run would be overwritten."""
    with looked_into(run.path):
        trained = run.checkpoints.is_dir() or run.adapter.is_file()
    if trained:
        raise ConfigError(f"run_dir={run.path}: holds a training run; give the evaluation a directory of its own")


def _facts(config: DictConfig, task: AdaptationTask[Any, Any], images: int) -> Facts:
    """What our figures are of; `images` is the number of images in the split."""
    model = task.model
    weights, adapter = Path(str(config.backbone.checkpoint)).name, config.adapter.checkpoint
    training = None  # what the weights were trained on before is not known
    if adapter is not None:
        method = config.adapter._target_.rsplit(".", 1)[-1]
        weights += f", {method} from {Path(adapter).name}"
        training = "fine-tuned" if isinstance(model.adapter, FullFineTuning) else "adapted"
    elif not isinstance(model.adapter, NoAdapter):
        weights += f", {config.adapter._target_.rsplit('.', 1)[-1]} freshly made"
    scores, how = task.scoring()
    return Facts(
        model=str(config.backbone.name),
        backbone=str(config.backbone.name),
        weights=weights,
        data=str(config.data.layout),
        split=f"{config.split} ({images:,} images)",
        our_split=str(config.split),
        images=images,
        resolution=int(config.backbone.image_size),
        protocol=f"{training or 'weights as they are'}, {how}",
        training=training,
        scores=scores,
    )
