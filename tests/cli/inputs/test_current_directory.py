"""What lies in the current directory is no code of ours, in whatever process a command starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mwa_lightning.data.scenes.writing import write_scenes

NAMES = ("yaml", "torch", "json", "numpy", "pickle", "random", "multiprocessing", "omegaconf", "submitit", "wandb")


@pytest.mark.slow
def test_commands__import_nothing_from_it(tmp_path: Path) -> None:
    """A sweep starts a run, which starts a second rank, and both start processes that load data."""
    root, here, ran = tmp_path / "scenes", tmp_path / "here", tmp_path / "ran"
    write_scenes(root, domain="target", seed=3, train=8, val=4, test=4)
    here.mkdir()
    for name in NAMES:
        (here / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write({name!r}); raise SystemExit(9)\n")
    (tmp_path / "library").mkdir()
    data = ["data=scenes", f"data.root={root}"]
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32", "data.num_workers=1"]
    commands = [
        ["mwa-prepare", *data, "check=true"],
        ["mwa-train", "--multirun", *data, *two, "trainer.max_steps=1", "data.batch_size=4", "run_dir=../sweep"],
    ]
    for name, *arguments in commands:
        done = subprocess.run(
            [Path(sys.executable).with_name(name), *arguments],
            cwd=here,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path / "library")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert not ran.exists()
    assert "test/i2t_r1" in (tmp_path / "sweep" / "0" / "metrics.json").read_text()
