"""A run that goes on with another number of processes keeps its global batch, and its losses."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.distributed.conftest import stop_after_first_save

Train = Callable[..., int]

# A large scale makes much of what is rounding.
OPTIONS = ("adapter.dropout=0", "adapter.scale=1", "training.checkpoint_every_n_steps=2")


def losses(directory: Path) -> list[float]:
    with (directory / "metrics.csv").open() as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "train/loss"]


@pytest.mark.slow
@pytest.mark.parametrize("before", [1, 2])
def test_resume__with_another_number_of_processes(
    before: int,
    train_one: Train,
    train_two: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Only the number of processes is said; what each of them gets follows from the checkpoint."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train_one(*OPTIONS, f"run_dir={whole}") == 0
    if before == 2:
        first, other = train_two, ("trainer.devices=1",)
    else:
        first, other = train_one, ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    stop_after_first_save(lambda: first(*OPTIONS, f"run_dir={run}"), monkeypatch)
    capfd.readouterr()
    assert first(*OPTIONS, *other, "data.batch_size=7", f"run_dir={run}") == 2
    after = 3 - before
    assert f"makes a global batch of {7 * after}, the run has one of 16: set data.batch_size={16 // after}, or" in (
        capfd.readouterr().err
    )
    assert first(*OPTIONS, *other, f"run_dir={run}") == 0
    said = f"{after} process{'es' * (after > 1)} now, {before} before: the global batch stays 16, so that each has "
    said += f"{16 // after} of its samples"
    assert capfd.readouterr().out.count(said) == 1
    assert said in (run / "train.log").read_text()

    assert losses(run) == pytest.approx(losses(whole), rel=1e-5)
    assert len(losses(run)) == 4
    ours, reference = (load_file(directory / "adapter.safetensors") for directory in (run, whole))
    errors = {name: ((ours[name] - value).norm() / value.norm()).item() for name, value in reference.items()}
    assert max(errors.values()) <= 1e-5, sorted(errors.items(), key=lambda pair: pair[1])[-3:]
