"""An evaluation from its configuration to its table."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mwa_lightning.adapters.none import NoAdapter
from mwa_lightning.errors import ConfigError
from mwa_lightning.report.expectations import Facts, check, compare, published
from mwa_lightning.report.tables import closing_table, comparison_table
from mwa_lightning.tasks.base import AdaptationTask
from mwa_lightning.tasks.model import parameter_figures
from mwa_lightning.tasks.retrieval import RetrievalTask
from mwa_lightning.training.build import attach, build_backbone, build_tokenizer
from mwa_lightning.training.console import console, show
from mwa_lightning.training.coordinator import check_saving
from mwa_lightning.training.processes import processes_of
from mwa_lightning.training.quiet import quiet
from mwa_lightning.training.run_directory import RunDirectory, choose
from mwa_lightning.training.setup import (
    check_device,
    evaluate_model,
    make_data,
    make_task,
    reproducible,
    statement_shape,
)

log = logging.getLogger(__name__)


def evaluate(config: DictConfig) -> dict[str, float]:
    """Evaluate a model on a split, every sample of it; returns the figures of `metrics.json`.

    The figures stand under the name of the split (`test/i2t_r1`). The directory gets config.yaml,
    metrics.json, train.log and, with `save_predictions`, predictions.safetensors; with `save_coordinator`,
    coordinator.safetensors.

    Raises ConfigError, DataError or CheckpointError for what the user can mend, ExpectationMissed if `expect`
    names a published result and ours lies outside its tolerance.
    """
    with quiet(), processes_of(config) as processes, console(rank=processes.rank), reproducible(config):
        expected = config.get("expect")
        if expected is not None:
            published(expected)
        check_device(config)
        path = processes.agree_on(choose(config, name=f"{config.name or 'run'}_evaluation"))
        run = RunDirectory(path, writes=processes.first)
        if processes.first:
            _refuse_training_run(run)
        tokenizer = build_tokenizer(config)
        data = make_data(config, tokenizer, processes, stages=("test",))
        model = attach(config, *build_backbone(config, statement_shape(data)))
        check_saving(config, model.adapter)
        task = make_task(config, model)  # refuses what does not fit before anything is written
        run.create(checkpoints=False)
        run.write_config(config)
        with run.logging():
            figures = evaluate_model(
                config,
                model,
                data,
                run,
                processes,
                prefix=config.split,
                predictions=config.save_predictions,
                coordinator=config.save_coordinator,
            )
            figures |= parameter_figures(model)
            run.write_metrics(figures)
            show(closing_table(figures, split=config.split))
            data.ledger.sum_up()
            log.info("run directory: %s", run.path)
            if expected is not None:
                comparison = compare(expected, figures, _facts(config, task), prefix=f"{config.split}/")
                show(comparison_table(comparison))
                check(comparison)
        return figures


def _refuse_training_run(run: RunDirectory) -> None:
    """Raise ConfigError if the figures of a training run would be overwritten."""
    if run.checkpoints.is_dir() or run.adapter.is_file():
        raise ConfigError(f"run_dir={run.path}: holds a training run; give the evaluation a directory of its own")


def _facts(config: DictConfig, task: AdaptationTask[Any, Any]) -> Facts:
    """What our figures are of."""
    model = task.model
    weights = Path(str(config.backbone.checkpoint)).name
    if not isinstance(model.adapter, NoAdapter):
        adapter = config.adapter.checkpoint
        weights += f", {config.adapter._target_.rsplit('.', 1)[-1]} " + (
            f"from {Path(adapter).name}" if adapter else "freshly made"
        )
    return Facts(
        model=str(config.backbone.name),
        weights=weights,
        data=str(config.data.layout),
        split=str(config.split),
        resolution=int(config.backbone.image_size),
        protocol=_protocol(task),
    )


def _protocol(task: AdaptationTask[Any, Any]) -> str:
    """What was done to the backbone before, and how its outputs are read; a head for statements always was trained."""
    adapted = not isinstance(task.model.adapter, NoAdapter)
    if not isinstance(task, RetrievalTask):
        return f"{'adapted' if adapted else 'fine-tuned'}, argmax of the classes"
    done = "adapted" if adapted else "zero-shot"
    if task.reranker is None:
        return f"{done}, cosine scores"
    return f"{done}, the best {task.reranker.k} re-ranked by the matching head"
