"""Trainers, data and tasks from a configuration; what training and evaluation share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from mwa_lightning.data.datamodule import RetrievalDataModule
from mwa_lightning.data.tokenizers import SentencePieceTokenizer
from mwa_lightning.errors import ConfigError
from mwa_lightning.metrics.recall import Embedded
from mwa_lightning.report.predictions import write_predictions
from mwa_lightning.tasks.model import RetrievalModel
from mwa_lightning.tasks.retrieval import RetrievalTask
from mwa_lightning.training.build import instantiate
from mwa_lightning.training.run_directory import RunDirectory


def make_data(config: DictConfig, tokenizer: SentencePieceTokenizer, *, stages: Sequence[str]) -> RetrievalDataModule:
    """The data of a configuration, read and checked for the given stages (`fit`, `test`).

    Raises DataError if something is missing, damaged or empty.
    """
    data: RetrievalDataModule = instantiate(
        config.data,
        tokenizer=tokenizer,
        image_size=config.backbone.image_size,
        seed=config.seed,
        split=config.split,
    )
    data.prepare_data()
    for stage in stages:
        data.setup(stage)
    return data


def make_task(
    config: DictConfig,
    model: RetrievalModel,
    *,
    keep_embeddings: bool = False,
    configure: Callable[[RetrievalTask], Any] | None = None,
) -> RetrievalTask:
    """The task of a configuration around a model."""
    task: RetrievalTask = instantiate(
        config.task,
        model=model,
        one_k=config.data.one_k,
        keep_embeddings=keep_embeddings,
        configure=configure,
    )
    # Checkpoints hold what trains; their keys are compared before they are loaded.
    task.strict_loading = False
    return task


@contextmanager
def reproducible(config: DictConfig) -> Iterator[None]:
    """On the processor, use algorithms only that give the same bytes every time."""
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


def check_device(config: DictConfig) -> None:
    """Raise ConfigError if the devices that are asked for are not there."""
    if config.trainer.accelerator != "gpu":
        return
    found = torch.cuda.device_count()
    wanted = config.trainer.devices
    if found == 0:
        raise ConfigError("trainer.accelerator=gpu: no GPU was found here; take trainer=cpu")
    if wanted != "auto" and int(wanted) > found:
        raise ConfigError(f"trainer.devices={wanted}: there are {found} GPUs here; take at most that many")


def make_trainer(
    config: DictConfig,
    run: RunDirectory,
    *,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
    plugins: Sequence[Any] = (),
    progress_bar: bool = False,
) -> pl.Trainer:
    """Lightning's trainer with our own sampling, checkpoints and summary in place of its."""
    settings = OmegaConf.to_container(config.trainer, resolve=True)
    assert isinstance(settings, dict)
    arguments = {str(key): value for key, value in settings.items()}
    extra = list(plugins)
    if arguments["precision"] == "16-mixed":
        from mwa_lightning.training.precision import GatedMixedPrecision

        del arguments["precision"]
        extra.append(GatedMixedPrecision(device="cuda"))
    return pl.Trainer(
        **arguments,
        callbacks=list(callbacks),
        logger=list(loggers) or False,
        plugins=extra or None,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress_bar,
        num_sanity_val_steps=0,
        default_root_dir=run.path,
    )


def evaluate_model(
    config: DictConfig,
    model: RetrievalModel,
    data: RetrievalDataModule,
    run: RunDirectory,
    *,
    prefix: str,
    predictions: bool = False,
) -> dict[str, float]:
    """Recall of a model on the configured split, under `prefix/`; `predictions` writes the embeddings too."""
    task = make_task(config, model, keep_embeddings=predictions)
    trainer = make_trainer(config, run)
    trainer.test(task, datamodule=data, verbose=False)
    if predictions and trainer.is_global_zero:
        embedded = task.test_recall.embedded
        assert embedded is not None
        _write_predictions(run, data, embedded)
    return {
        f"{prefix}/{name.removeprefix('test/')}": float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("test/")
    }


def _write_predictions(run: RunDirectory, data: RetrievalDataModule, embedded: Embedded) -> None:
    pictures = data.split(data.test_split).pictures
    ids = list(pictures.names) if data.layout == "pairs" else pictures.image_ids.tolist()
    write_predictions(
        run.predictions,
        images=embedded.images,
        texts=embedded.texts,
        text_image=embedded.text_image,
        image_ids=ids,
    )
