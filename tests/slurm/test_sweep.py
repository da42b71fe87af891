"""A sweep as a job array of a real SLURM."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mwa_lightning.data.scenes.writing import write_scenes
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

TINY = (
    "adapter=head_only",
    "trainer.max_steps=2",
    "optim.warmup_epochs=0",
    "data.batch_size=8",
    "data.num_workers=0",
    "launcher=slurm",
    "launcher.array_parallelism=2",
    "launcher.timeout_min=20",
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(root, domain="target", seed=3, train=8, val=4, test=6)
    return root


def start(cluster: Cluster, command: str, *words: str) -> subprocess.Popen[str]:
    environment = {**cluster.environment, "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", f"mwa_lightning.cli.{command}", *words]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def noted(folder: Path) -> list[str]:
    """The ids of the SLURM jobs."""
    record = folder / "multirun.yaml"
    jobs = yaml.safe_load(record.read_text())["jobs"] if record.is_file() else {}
    return [job["slurm"] for job in jobs.values() if "slurm" in job]


def test_sweep__four_jobs_that_outlive_their_command(cluster: Cluster, scenes: Path, tmp_path: Path) -> None:
    """The command that submitted them is killed; started again it finds its jobs in the queue."""
    folder = tmp_path / "sweep"
    words = ["-m", *TINY, f"data.root={scenes}", f"run_dir={folder}"]
    first = start(cluster, "train", *words, "optim.lr=1e-3,1e-2", "seed=1,2")
    limit = time.monotonic() + 600
    while len(noted(folder)) < 4 and time.monotonic() < limit:
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    submitted = noted(folder)
    array = submitted[0].partition("_")[0]
    assert submitted == [f"{array}_{place}" for place in range(4)]

    second = start(cluster, "train", "-m", f"run_dir={folder}", "launcher=slurm")
    out, error = second.communicate(timeout=1500)
    assert second.returncode == 0, out + error
    assert "is running already" in out
    assert "started" not in out
    assert noted(folder) == submitted
    assert out.count("| through |") == 4
    settings = []
    for number in range(4):
        config = yaml.safe_load((folder / str(number) / "config.yaml").read_text())
        settings.append((config["optim"]["lr"], config["seed"]))
        assert "test/mean_recall" in json.loads((folder / str(number) / "metrics.json").read_text())
        assert "Retrieval on the test split" in (folder / f"{number}.log").read_text()
    assert settings == [(0.001, 1), (0.001, 2), (0.01, 1), (0.01, 2)]


def test_sweep__failed_and_cancelled_jobs(cluster: Cluster, scenes: Path, tmp_path: Path) -> None:
    """One is cancelled while it waits, one finds a broken picture, one comes through."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in scenes.rglob("*"):
        to = broken / file.relative_to(scenes)
        to.mkdir(parents=True, exist_ok=True) if file.is_dir() else to.write_bytes(file.read_bytes())
    (broken / "test" / "scene_test_000002.jpg").write_bytes(b"")
    folder = tmp_path / "sweep"
    words = ["-m", *TINY, f"data.root={scenes},{broken},{tmp_path / 'third'}", f"run_dir={folder}"]
    (tmp_path / "third").symlink_to(scenes)
    sweep = start(cluster, "train", *words, "launcher.array_parallelism=1")
    limit = time.monotonic() + 600
    while len(noted(folder)) < 3 and time.monotonic() < limit:
        time.sleep(0.1)
    cluster.run("scancel", noted(folder)[2])
    out, error = sweep.communicate(timeout=1500)
    assert sweep.returncode == 2, out + error
    assert "2 of 3 jobs failed (1, 2)" in error
    assert "job 1 failed (exit code 2): mwa-train: error: " in out
    assert "scene_test_000002.jpg" in out
    assert sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.isdigit()) == ["0"]


def test_tune__trials_are_jobs(cluster: Cluster, scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    space = "optim.lr=tag(log,interval(1e-4,1e-2))"
    words = [*TINY, f"data.root={scenes}", space, "tune.trials=2", f"run_dir={folder}"]
    out, error = start(cluster, "tune", *words).communicate(timeout=1500)
    assert out.count("| through |") == 2, out + error
    first, second = noted(folder)
    assert first != second
    assert cluster.state(first) == cluster.state(second) == "COMPLETED"
