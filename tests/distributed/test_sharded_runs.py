"""Whole runs of two processes that share the weights (`trainer=fsdp`), and what is refused with it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from mwa_lightning.cli import evaluate, train
from mwa_lightning.data.samples.records import TrainBatch
from mwa_lightning.data.scenes.writing import write_scenes_nlvr2
from mwa_lightning.tasks.losses import functions as losses
from mwa_lightning.tasks.retrieval import RetrievalTask
from tests.distributed.conftest import needs_fsdp, stop_after_first_save

Train = Callable[..., int]

pytestmark = needs_fsdp

SHARDED = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32")


def figures(directory: Path, prefix: str) -> dict[str, float]:
    metrics = json.loads((directory / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if name.startswith(prefix)}


def logged(directory: Path, name: str) -> list[float]:
    with (directory / "metrics.csv").open() as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"] == name]


def checkpoint(directory: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)
    return state


def assert_equal_weights(first: Path, second: Path) -> None:
    """Relative and per tensor."""
    ours, reference = (load_file(directory / "adapter.safetensors") for directory in (first, second))
    assert ours.keys() == reference.keys()
    errors = {name: ((ours[name] - value).norm() / value.norm()).item() for name, value in reference.items()}
    assert max(errors.values()) <= 1e-5, sorted(errors.items(), key=lambda pair: pair[1])[-3:]


def test_train__sharded_run_is_as_one(
    train_two: Train, train_one: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clipped gradient, a moving average, and the lower layers without a graph.

    This process sees its half of each global batch; weights like one process's say that the other sees the other half.
    """
    two, one = tmp_path / "two", tmp_path / "one"
    batches: list[TrainBatch] = []
    step = RetrievalTask.model_step

    def watched(self: RetrievalTask, batch: TrainBatch) -> torch.Tensor:
        batches.append(batch)
        return step(self, batch)

    def asked(rows: torch.Tensor) -> list[int]:
        raise AssertionError("every process knows how many samples the others have")

    monkeypatch.setattr(RetrievalTask, "model_step", watched)
    monkeypatch.setattr(losses, "_ask_sizes", asked)
    options = ("adapter.dropout=0", "adapter.scale=1", "adapter.first_layer=3", "save_predictions=true")
    options += ("training.ema_decay=0.5", "trainer.gradient_clip_val=0.5", "training.zero_shot=false")
    assert train_two(*SHARDED, *options, f"run_dir={two}") == 0
    assert not distributed.is_initialized()
    halves = batches.copy()
    batches.clear()
    assert train_one(*options, f"run_dir={one}") == 0
    assert logged(two, "train/loss") == pytest.approx(logged(one, "train/loss"), rel=1e-5)
    assert len(halves) == len(batches) == 4
    for half, batch in zip(halves, batches, strict=True):
        assert half.shares == (8, 8)
        assert half.sample_ids == batch.sample_ids[:8]
    assert_equal_weights(two, one)
    assert figures(two, "params/") == figures(one, "params/")

    ours, reference = checkpoint(two), checkpoint(one)
    assert ours.keys() == reference.keys()
    assert {name: value.shape for name, value in ours["state_dict"].items()} == {
        name: value.shape for name, value in reference["state_dict"].items()
    }
    for place, state in reference["optimizer_states"][0]["state"].items():
        torch.testing.assert_close(ours["optimizer_states"][0]["state"][place], state, rtol=1e-3, atol=1e-6)
    averages = (each["callbacks"]["WeightAverage"]["average"] for each in (ours, reference))
    torch.testing.assert_close(*averages, rtol=1e-4, atol=1e-6)

    assert evaluate.main([f"run={two}", "trainer=cpu", f"run_dir={tmp_path / 'again'}"]) == 0
    assert figures(tmp_path / "again", "test/") == figures(two, "test/")
    kept, again = (load_file(run / "predictions.safetensors") for run in (two, tmp_path / "again"))
    for name, tensor in again.items():
        torch.testing.assert_close(kept[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_train__one_process_alone_may_shard_too(train_one: Train, tmp_path: Path) -> None:
    options = ("trainer.max_steps=2", "training.zero_shot=false")
    assert train_one(*options, f"run_dir={tmp_path / 'whole'}") == 0
    assert train_one(*options, "trainer.strategy=fsdp", f"run_dir={tmp_path / 'sharded'}") == 0
    assert not distributed.is_initialized()
    assert_equal_weights(tmp_path / "sharded", tmp_path / "whole")
    assert figures(tmp_path / "sharded", "test/") == figures(tmp_path / "whole", "test/")


@pytest.mark.slow
def test_train__sharded_run_killed_and_started_again(
    train_two: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes as a run that nothing happened to, with dropout and a moving average."""
    options = (*SHARDED, "training.checkpoint_every_n_steps=2", "data.num_workers=0", "training.ema_decay=0.5")
    assert train_two(*options, f"run_dir={tmp_path / 'whole'}") == 0
    stop_after_first_save(lambda: train_two(*options, f"run_dir={tmp_path / 'run'}"), monkeypatch)
    assert train_two(*options, f"run_dir={tmp_path / 'run'}") == 0
    weights = [(tmp_path / run / "adapter.safetensors").read_bytes() for run in ("whole", "run")]
    assert weights[0] == weights[1]
    assert logged(tmp_path / "whole", "train/loss") == logged(tmp_path / "run", "train/loss")
    assert figures(tmp_path / "whole", "test/") == figures(tmp_path / "run", "test/")


@pytest.mark.slow
def test_train__sharded_step_with_a_bad_loss_in_one_process_is_skipped(
    train_two: Train, train_one: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By both of them; or the weights would not be those of one process that skips it."""
    step = RetrievalTask.model_step
    calls: list[int] = []

    def poisoned(self: RetrievalTask, batch: TrainBatch) -> torch.Tensor:
        calls.append(len(calls))
        return step(self, batch) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(RetrievalTask, "model_step", poisoned)
    options = ("adapter.dropout=0", "adapter.scale=1", "training.nonfinite=skip", "training.zero_shot=false")
    assert train_two(*SHARDED, *options, f"run_dir={tmp_path / 'two'}") == 0
    calls.clear()
    assert train_one(*options, f"run_dir={tmp_path / 'one'}") == 0
    for run in ("two", "one"):
        assert "step 1: the loss is not finite" in (tmp_path / run / "train.log").read_text()
        assert logged(tmp_path / run, "train/skipped_steps")[-1] == 1
    assert_equal_weights(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("sharded_first", [True, False])
def test_resume__with_another_strategy(
    sharded_first: bool, train_two: Train, train_one: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From two processes that share the weights to one, and from DDP to those two."""
    options = ("adapter.dropout=0", "adapter.scale=1", "training.checkpoint_every_n_steps=2", "training.ema_decay=0.5")
    assert train_one(*options, f"run_dir={tmp_path / 'whole'}") == 0
    run = f"run_dir={tmp_path / 'run'}"
    if sharded_first:
        stop_after_first_save(lambda: train_two(*SHARDED, *options, run), monkeypatch)
        assert train_one(*options, run) == 0
    else:
        stop_after_first_save(lambda: train_two(*options, run), monkeypatch)
        assert train_two(*SHARDED, *options, run) == 0
    assert logged(tmp_path / "run", "train/loss") == pytest.approx(logged(tmp_path / "whole", "train/loss"), rel=1e-5)
    assert_equal_weights(tmp_path / "run", tmp_path / "whole")


SIZES = "vision_width=32 vision_ffn_width=64 vision_depth=2 embedding_width=16 "
SIZES += "text_width=32 text_ffn_width=64 text_layers=2"
FUSION = (
    "backbone=blip_tiny", "backbone.checkpoint=random", *(f"backbone.{size}" for size in SIZES.split()), "data=scenes",
)  # fmt: skip


@pytest.mark.slow
def test_train__sharded_coordinators_and_reranking(train_two: Train, tmp_path: Path) -> None:
    """The processes have other numbers of pairs to score, 4 and 5 images, and gather the same weights all the same."""
    two, one = tmp_path / "two", tmp_path / "one"
    options = (*FUSION, "adapter=modex", "adapter.mid_dim=4", "task.rerank=4")
    assert train_two(*SHARDED, *options, f"run_dir={two}") == 0
    assert logged(two, "coordinator/ffn_1/entropy")
    assert evaluate.main([f"run={two}", "trainer=cpu", "trainer.precision=32", f"run_dir={one}"]) == 0
    assert evaluate.main([f"run={two}", *SHARDED, f"run_dir={tmp_path / 'again'}"]) == 0
    for name, value in figures(one, "test/").items():
        assert figures(two, "test/")[name] == pytest.approx(value, abs=1e-6), name
        assert figures(tmp_path / "again", "test/")[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.slow
def test_train__sharded_statements_in_bfloat16(train_two: Train, tmp_path: Path) -> None:
    options = ("task=reasoning", "adapter=modex", "training.zero_shot=false", "trainer.precision=bf16-mixed")
    root = tmp_path / "scenes_nlvr2"
    write_scenes_nlvr2(root, domain="target", seed=3, train=24, dev=8, test=12)
    two, one = tmp_path / "two", tmp_path / "one"
    assert train_two(*SHARDED, "data=scenes_nlvr2", *options, f"run_dir={two}", root=root) == 0
    assert {tensor.dtype for tensor in load_file(two / "adapter.safetensors").values()} == {torch.float32}
    assert evaluate.main([f"run={two}", "trainer=cpu", "trainer.precision=bf16-mixed", f"run_dir={one}"]) == 0
    assert figures(one, "test/")["test/accuracy"] == pytest.approx(figures(two, "test/")["test/accuracy"], abs=1.0)


@pytest.mark.slow
def test_train__sharded_by_torchrun(scenes: Path, elsewhere: Path) -> None:
    (elsewhere / "start.py").write_text("import sys\nfrom mwa_lightning.cli.train import main\nsys.exit(main())\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "start.py", *SHARDED]
    command += ["data.batch_size=8", "trainer.max_steps=2", "optim.warmup_epochs=0", f"data.root={scenes}"]
    done = subprocess.run([*command, "run_dir=run"], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Retrieval on the test split") == 1
    assert (elsewhere / "run" / "adapter.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["trainer.precision=16-mixed"],
            "trainer.precision=16-mixed does not go with trainer.strategy=fsdp: take bf16-mixed",
        ),
        ([*FUSION, "task.queue_size=64"], "task.queue_size=64: a momentum queue needs whole weights"),
        (["trainer.precision=64"], "trainer.precision=64-true does not go with trainer.strategy=fsdp"),
    ],
)
def test_train__what_cannot_be_sharded_is_refused(
    words: list[str], line: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*SHARDED, *words, "run_dir=run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mwa-train: error: {line}"), error
    assert error.count("\n") == 1
    assert not (elsewhere / "run").exists()
