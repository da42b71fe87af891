"""The task of statements: its loss, what is hidden for baselines, and its figures over a whole evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional
from torch.utils.data import DataLoader

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.adapters.mwa import MultiWayAdapter
from mwa_lightning.data.samples.statements import StatementBatch, Statements, StatementSplit
from mwa_lightning.data.statement_datamodule import StatementDataModule
from mwa_lightning.errors import ConfigError
from mwa_lightning.tasks.model import ReasoningModel, trained_parameters
from mwa_lightning.tasks.reasoning import ReasoningTask, bound_without_the_rest, majority_accuracy
from mwa_lightning.tasks.reasoning_heads import MultiwayReasoningHeads, StatementShape

PAIR = StatementShape(images=2, classes=("False", "True"))


@pytest.fixture
def model(make_model: Callable[..., torch.nn.Module]) -> ReasoningModel:
    backbone = make_model(AdapterMethodStub()).backbone
    torch.manual_seed(1)
    heads = MultiwayReasoningHeads(width=16, shape=PAIR)
    adapter = MultiWayAdapter(mid_dim=4, enhancer_dim=6, dropout=0.0)
    made = ReasoningModel(backbone=backbone, adapter=adapter, heads=heads)
    with torch.no_grad():
        for parameter in trained_parameters(made).values():
            parameter.normal_(std=0.3)
    return made


class AdapterMethodStub(AdapterMethod):
    """Puts nothing anywhere: the backbone alone is wanted."""

    def place(self, *_: object) -> None:
        """Nothing."""


def make_batch(samples: int = 4, *, first: int = 0) -> StatementBatch:
    generator = torch.Generator().manual_seed(5 + first)
    ids = torch.randint(3, 40, (samples, 6), generator=generator)
    ids[:, 0] = 0
    return StatementBatch(
        images=torch.randint(0, 256, (samples, 2, 3, 16, 16), dtype=torch.uint8, generator=generator),
        ids=ids,
        mask=torch.ones(samples, 6, dtype=torch.bool),
        labels=torch.arange(first, first + samples) % 2,
        sample_index=torch.arange(first, first + samples),
        sample_ids=[f"s{first + number}" for number in range(samples)],
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_model_step__is_the_mean_cross_entropy(model: ReasoningModel, smoothing: float) -> None:
    task, batch = ReasoningTask(model=model, label_smoothing=smoothing).eval(), make_batch()
    log_chances = model(batch.images, batch.ids, batch.mask).log_softmax(dim=1)
    target = functional.one_hot(batch.labels, 2) * (1 - smoothing) + smoothing / 2
    assert torch.allclose(task.model_step(batch), -(target * log_chances).sum(dim=1).mean(), atol=1e-6)


def test_model_step__reaches_all_that_trains(model: ReasoningModel) -> None:
    ReasoningTask(model=model).model_step(make_batch()).backward()
    assert {name for name, parameter in trained_parameters(model).items() if parameter.grad is None} == set()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def test_logits__blind_to_one_side(model: ReasoningModel) -> None:
    batch, other = make_batch(), make_batch(first=4)
    other_images, other_text = batch._replace(images=other.images), batch._replace(ids=other.ids)
    for blind, same, changed in ((None, None, (other_images, other_text)), ("images", other_images, (other_text,)),
                                 ("text", other_text, (other_images,))):  # fmt: skip
        task = ReasoningTask(model=model, blind=blind).eval()
        seen = task.logits(batch)
        if same is not None:
            assert torch.equal(task.logits(same), seen)
        assert all((task.logits(one) - seen).abs().max() > 1e-3 for one in changed)
    with pytest.raises(ConfigError, match=r"task\.blind=all: choose images or text"):
        ReasoningTask(model=model, blind="all")  # type: ignore[arg-type]


class Given(StatementDataModule):
    """Two batches of three statements that are there already."""

    def __init__(self) -> None:
        pl.LightningDataModule.__init__(self)
        self.test_split = "test"
        splits = {}
        for name, labels in (("train", [1, 1, 0]), ("val", [0, 1, 0, 1, 0, 1]), ("test", [0, 1, 0, 1, 0, 1])):
            statements = Statements(
                texts=["x"] * len(labels),
                identifiers=[f"{name}-{number}" for number in range(len(labels))],
                labels=labels,
                image_index=[[0, 1]] * len(labels),
            )
            groups = np.arange(len(labels)) // 2
            subsets = {"balanced": np.arange(len(labels)) < 4}
            splits[name] = StatementSplit(
                name=name, pictures=None, statements=statements, classes=PAIR.classes, groups=groups, subsets=subsets
            )  # type: ignore[arg-type]
        self._splits = splits

    def setup(self, stage: str | None = None) -> None:
        """Nothing."""

    def prepare_data(self) -> None:
        """Nothing."""

    def split(self, name: str) -> StatementSplit:
        return self._splits[name]

    def test_dataloader(self) -> DataLoader:  # type: ignore[override]
        # Out of order, as it comes from several processes.
        batches = [make_batch(3, first=3), make_batch(3)]
        return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]


def test_evaluation__figures_and_predictions(model: ReasoningModel, tmp_path: Path) -> None:
    data = Given()
    task = ReasoningTask(model=model, keep_predictions=True)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.test(task, datamodule=data, verbose=False)
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(*batch[:3]) for batch in (make_batch(3), make_batch(3, first=3))])
    right = (logits.argmax(dim=1) == torch.arange(6) % 2).tolist()
    pairs = [right[place] and right[place + 1] for place in (0, 2, 4)]
    figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert figures["test/accuracy"] == pytest.approx(100 * sum(right) / 6, abs=1e-3)
    assert figures["test/consistency"] == pytest.approx(100 * sum(pairs) / 3, abs=1e-3)
    assert figures["test/balanced/accuracy"] == pytest.approx(100 * sum(right[:4]) / 4, abs=1e-3)
    assert figures["test/majority"] == 50.0
    task.write_predictions(tmp_path / "predictions.safetensors", data)
    with safe_open(tmp_path / "predictions.safetensors", framework="pt") as file:
        assert torch.allclose(file.get_tensor("logits"), logits, atol=1e-5)
        assert file.get_tensor("labels").tolist() == [0, 1, 0, 1, 0, 1]
        assert json.loads(file.metadata()["identifiers"]) == [f"test-{number}" for number in range(6)]


def test_majority_accuracy__of_the_class_that_training_has_most_of() -> None:
    labels = np.array([0, 1, 1, 2])
    assert majority_accuracy(np.array([0, 0, 1]), labels) == 25.0
    assert majority_accuracy(np.array([2, 2, 1]), labels) == 25.0
    assert majority_accuracy(np.array([1]), labels) == 50.0
    assert majority_accuracy(None, labels) == 50.0


def test_bound_without_the_rest__is_reached_by_the_best_constant_answers() -> None:
    labels = np.array([0, 1, 1, 1, 0, 2])
    assert bound_without_the_rest(["a", "a", "a", "b", "b", "c"], labels) == pytest.approx(100 * 4 / 6)
    assert bound_without_the_rest([(0, 1), (0, 1), (1, 0), (1, 0), (2, 2), (2, 3)], labels) == pytest.approx(
        100 * 5 / 6
    )
    assert bound_without_the_rest(range(6), labels) == 100.0
