"""`trainer.fast_dev_run`: everything that a run does, and nothing of it stays."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from mwa_lightning.cli import train
from mwa_lightning.errors import ConfigError
from mwa_lightning.tasks.retrieval import RetrievalTask
from mwa_lightning.training.evaluate import evaluate
from mwa_lightning.training.fit import fit

MakeConfig = Callable[..., DictConfig]


@pytest.mark.parametrize(("value", "steps"), [("true", 1), ("2", 2)])
def test_fit__a_few_batches_of_everything_and_nothing_stays(
    value: str,
    steps: int,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shown: list[int] = []
    embed = RetrievalTask.update

    def watched(self: RetrievalTask, batch: object, metric: object) -> None:
        shown.append(len(next(part for part in batch if isinstance(part, torch.Tensor))))  # type: ignore[attr-defined]
        embed(self, batch, metric)  # type: ignore[arg-type]

    monkeypatch.setattr(RetrievalTask, "update", watched)
    words = (f"+trainer.fast_dev_run={value}", "data.eval_batch_size=2", "save_predictions=true")
    assert fit(make_config(*words)) == {}
    # Validation and evaluation: so many batches of images, and their two captions each.
    assert sum(shown) == 2 * (2 * steps + 4 * steps)
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().out
    assert "only a try; metrics are of a few samples, and nothing is kept" in said
    assert f"training, validation and evaluation went through, with batches of each: {steps}" in said
    assert "in percent" not in said


def test_fit__a_try_leaves_the_run_in_its_directory_alone(make_config: MakeConfig, tmp_path: Path) -> None:
    fit(make_config("trainer.max_epochs=1"))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    fit(make_config("+trainer.fast_dev_run=true", "optim.lr=0.1"))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_command__of_two_processes(tiny_run: list[str], tmp_path: Path) -> None:
    words = [*tiny_run, "trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=4", "+trainer.fast_dev_run=true"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mwa_lightning.cli.train", *words]
    subprocess.run(command, check=True, timeout=300, cwd=tmp_path, env=environment)
    assert [path for path in tmp_path.iterdir() if path.name.startswith("mwa_lightning_")] == []
    assert not (tmp_path / "logs").exists()


def test_refused(make_config: MakeConfig, tiny_run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("-1", "0.5", "yes"):
        with pytest.raises(ConfigError, match=rf"^trainer\.fast_dev_run={value}: want true, false or a number"):
            fit(make_config(f"+trainer.fast_dev_run={value}"))
    with pytest.raises(ConfigError, match="mwa-train takes it"):
        evaluate(make_config("+trainer.fast_dev_run=true", "adapter=none", command="evaluate"))
    assert train.main([*tiny_run, "-m", "seed=1,2", "+trainer.fast_dev_run=true"]) == 2
    assert "try one of the runs alone" in capsys.readouterr().err
