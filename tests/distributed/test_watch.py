"""The verdict on a run of two processes: one for both, said once, also where one has no sample of a batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import distributed

Train = Callable[..., int]

LINE = "nothing trains in adapter: its gradients are zero since about step 0; set adapter.scale=0.6"


@pytest.fixture
def options(tiny_run: list[str], scenes: Path) -> list[str]:
    """A dead adapter on 105 captions, 26 a step: the fifth step of an epoch has one, and the second process none."""
    return [
        *(word for word in tiny_run if not word.startswith("data")),
        f"data.root={scenes}",
        "data.drop_last=false",
        "data.eval_batch_size=3",
        "adapter.mid_dim=4",
        "adapter.scale=1e-45",
        "adapter.enhancer=none",
        "adapter.dropout=0",
        "optim.lr=1e-3",
        "trainer.max_steps=30",
        "trainer.max_epochs=6",
        "training.zero_shot=false",
    ]


@pytest.mark.slow
def test_watch__stop_ends_both_processes_with_one_line(
    options: list[str], train_two: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = [*options, "data.batch_size=13", "training.collapsed=stop"]
    assert train_two(*words, f"run_dir={run}") == 5
    assert not distributed.is_initialized()
    assert capfd.readouterr().err == f"mwa-train: error: {LINE}\n"
    assert (run / "train.log").read_text().count(LINE) == 1
    assert json.loads((run / "metrics.json").read_text())["train/dead_at_step"] == 0
    assert (run / "checkpoints/last.ckpt").is_file()
    # The same command ends so at the same step: the fifth epoch is made again from the checkpoint of the fourth.
    assert train_two(*words, f"run_dir={run}") == 5
    assert "resuming from" in (run / "train.log").read_text()
    # And it may go on: said when it is found, and below the table.
    assert train_two(*words, "training.collapsed=warn", f"run_dir={run}") == 0
    assert capfd.readouterr().out.count(f"warning: {LINE}") == 1
    assert json.loads((run / "metrics.json").read_text())["train/dead_at_step"] == 0
