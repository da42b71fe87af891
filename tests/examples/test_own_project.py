"""The example of a project of one's own: its test, and the commands from a copy of it that lies elsewhere."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.leftovers import left_by

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2] / "examples" / "own_project"
WORDS = (
    "--config-dir",
    "configs",
    "adapter=scaled_shift",
    "data=scenes",
    "data.batch_size=8",
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "trainer.precision=32",
    "trainer.devices=2",
    "trainer.threads=1",
    "trainer.max_steps=8",
    "trainer.log_every_n_steps=1",
    "training.checkpoint_every_n_steps=2",
    "callbacks.progress_bar=false",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in a folder of its own, with one undisturbed run of two processes in it."""
    folder = tmp_path_factory.mktemp("elsewhere") / "own_project"
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    done = command(folder, "train", *WORDS, "run_dir=whole")
    assert done.returncode == 0, done.stderr
    return folder


def command(folder: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([_path(name), *words], cwd=folder, capture_output=True, text=True, timeout=250)


def _path(name: str) -> str:
    return str(Path(sys.executable).with_name(f"mwa-{name}"))


def test_own_test(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_train__resumes_to_the_same_bytes(project: Path) -> None:
    last = project / "killed" / "checkpoints" / "last.ckpt"
    words = [_path("train"), *WORDS, "run_dir=killed"]
    with subprocess.Popen(words, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while not last.is_file():
            assert process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    again = command(project, "train", *WORDS, "run_dir=killed")
    assert again.returncode == 0, again.stderr
    assert "resuming from" in (project / "killed" / "train.log").read_text()
    assert left_by(project / "killed") == left_by(project / "whole")


def test_evaluate__from_the_run_directory(project: Path) -> None:
    without = command(project, "eval", "run=whole")
    assert without.returncode == 2
    assert f"add --config-dir={project / 'configs'}" in without.stderr
    found = command(project, "eval", "run=whole", "--config-dir", "configs", "run_dir=evaluated")
    assert found.returncode == 0, found.stderr
    whole, evaluated = (
        left.read_text() for left in (project / "whole/metrics.json", project / "evaluated/metrics.json")
    )
    assert '"test/mean_recall"' in whole
    assert _line(whole, "test/mean_recall") == _line(evaluated, "test/mean_recall")


def _line(text: str, key: str) -> str:
    return next(line.strip().rstrip(",") for line in text.splitlines() if f'"{key}"' in line)


def test_sweep_and_search(project: Path) -> None:
    sweep = command(
        project, "train", *WORDS, "--multirun", "adapter.strength=0.5,2", "trainer.max_steps=2", "run_dir=sweep"
    )
    assert sweep.returncode == 0, sweep.stdout + sweep.stderr
    assert sweep.stdout.count("| through |") == 2, sweep.stdout
    search = command(
        project,
        "tune",
        *WORDS,
        "adapter.strength=interval(0.5,2)",
        "tune.trials=2",
        "trainer.max_steps=2",
        "run_dir=search",
    )
    assert search.returncode == 0, search.stdout + search.stderr
    assert len(list((project / "search").glob("*/metrics.json"))) == 2
