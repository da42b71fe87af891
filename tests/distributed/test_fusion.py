"""Retrieval with a fusion encoder by two processes: one queue, and each pair scored where its image is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mwa_lightning.cli import evaluate
from tests.distributed.conftest import stop_after_first_save

Train = Callable[..., int]

SIZES = "vision_width=32 vision_ffn_width=64 vision_depth=2 embedding_width=16 "
SIZES += "text_width=32 text_ffn_width=64 text_layers=2"
OPTIONS = (
    "backbone=blip_tiny", "backbone.checkpoint=random", *(f"backbone.{size}" for size in SIZES.split()),
    "data=scenes", "task.queue_size=40", "task.rerank=4", "adapter.mid_dim=4", "adapter.enhancer_dim=4",
)  # fmt: skip


def test_train__queue_and_reranking_of_two_processes(
    train_two: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    two = tmp_path / "two"
    assert train_two(*OPTIONS, f"run_dir={two}") == 0
    assert capfd.readouterr().out.count("re-ranked the candidates") == 2  # validation and test, the first process's
    queue = torch.load(two / "checkpoints" / "last.ckpt", weights_only=True)["momentum_queue"]
    assert len(queue["images"]) == 40  # of four global batches of 16
    assert queue["next"] == 64 % 40
    assert queue["images"].norm(dim=1) == pytest.approx(1.0, abs=1e-5)

    one = tmp_path / "one"
    assert evaluate.main([f"run={two}", "trainer=cpu", "trainer.precision=32", f"run_dir={one}"]) == 0
    figures = [json.loads((directory / "metrics.json").read_text()) for directory in (two, one)]
    for name, value in figures[1].items():
        if name.startswith("test/"):
            assert figures[0][name] == pytest.approx(value, abs=1e-6), name


def test_train__no_wrong_pairs_of_ones_own(
    train_one: Train,
    train_two: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With one sample a process every pair that matching sees is right; also where more processes go on."""
    line = (
        "mwa-train: error: each process has one sample of a global batch, so that matching has no negatives and learns "
        "nothing; "
    )
    options = [option for option in OPTIONS if "queue" not in option]
    begun, run = tmp_path / "begun", tmp_path / "run"
    assert train_two(*options, "data.batch_size=1", f"run_dir={run}") == 2
    assert capfd.readouterr().err.startswith(line)
    assert not run.exists()
    assert train_two(*options, "data.batch_size=1", "task.matching_negatives=all", f"run_dir={run}") == 0

    options += ["training.checkpoint_every_n_steps=2", "data.batch_size=2", f"run_dir={begun}"]
    stop_after_first_save(lambda: train_one(*options), monkeypatch)
    capfd.readouterr()
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    assert train_one(*options, *two) == 2
    assert line in capfd.readouterr().err
    assert train_one(*options) == 0
