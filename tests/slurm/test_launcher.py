"""`launcher=slurm` itself, on a real SLURM, with processes that leave what a run leaves in a moment."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from mwa_lightning.cli.config.composing import compose_groups
from mwa_lightning.errors import ConfigError
from mwa_lightning.sweeps import slurm_launcher as slurm
from mwa_lightning.sweeps.folder import Job, SweepFolder
from mwa_lightning.sweeps.job_loop import JobsFailed, carry_out
from mwa_lightning.sweeps.slurm_launcher import SlurmLauncher
from tests.slurm.cluster import Cluster
from tests.sweeps.conftest import SHORT

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _on_cluster(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(slurm, "TRAIN", SHORT)
    monkeypatch.setattr(slurm, "_LOOK", 1.0)


def run_of(devices: int = 1) -> DictConfig:
    trainer = {"devices": devices, "num_nodes": 1, "accelerator": "cpu"}
    return OmegaConf.create({"trainer": trainer, "training": {"requeue_signal": "USR1"}})


def make(folder: SweepFolder, *, devices: int = 1, **changes: object) -> SlurmLauncher:
    config = compose_groups("multirun", {"launcher": "slurm"}).launcher
    OmegaConf.set_struct(config, False)  # as `+launcher.setup=...` does
    return SlurmLauncher(OmegaConf.merge(config, changes), folder, [run_of(devices)])  # type: ignore[arg-type]


def sweep(path: Path, *jobs: tuple[str, ...]) -> tuple[SweepFolder, list[Job]]:
    folder = SweepFolder(path / "sweep")
    made = [Job(number, overrides) for number, overrides in enumerate(jobs)]
    folder.write(made)
    return folder, made


def ids(folder: SweepFolder) -> list[str]:
    return [job.notes["slurm"] for job in folder.read() if "slurm" in job.notes]


def test_start__one_array(cluster: Cluster, tmp_path: Path) -> None:
    folder, jobs = sweep(tmp_path, ("lr=1",), ("lr=2", "fail=3"), ("lr=3",))
    (folder.path / "fail").touch()
    with pytest.raises(JobsFailed, match=r"1 of 3 jobs failed \(1\)") as caught:
        carry_out(jobs, folder, make(folder, array_parallelism=2, signal_delay_s=30, setup=["module list || true"]))
    assert caught.value.exit_code == 3
    array = ids(folder)[0].partition("_")[0]
    assert ids(folder) == [f"{array}_0", f"{array}_1", f"{array}_2"]
    assert [folder.run(job).finished for job in jobs] == [True, False, True]
    assert folder.log(jobs[1]).read_text() == "short run: error: as was asked for\n"
    (script,) = (folder.path / ".submitit").glob(f"{array}*.sh")
    text = script.read_text()
    for line in ("--array=0-2%2", "--signal=USR1@30", "--requeue", "--ntasks-per-node=1", "--time=60"):
        assert f"#SBATCH {line}" in text
    assert "\ntrap : TERM USR1 USR2\nmodule list || true\n" in text
    assert " --kill-on-bad-exit=1 --cpus-per-task=1 " in text


def test_start__ranks_are_tasks_of_the_job(tmp_path: Path) -> None:
    folder, jobs = sweep(tmp_path, ("lr=1",))
    carry_out(jobs, folder, make(folder, devices=2))
    assert len((folder.path / "0" / "starts").read_text().splitlines()) == 2


def test_find__jobs_outlive_who_submitted_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, jobs = sweep(tmp_path, ("lr=1", "epoch_s=3"), ("lr=2", "epoch_s=3"))
    assert len(make(folder).start(jobs)) == 2
    submitted = ids(folder)
    carry_out(jobs, folder, make(folder))
    assert ids(folder) == submitted
    assert all(folder.run(job).finished for job in jobs)
    assert capsys.readouterr().out.count("is running already") == 2


def test_requeued__goes_on_by_itself(cluster: Cluster, tmp_path: Path) -> None:
    folder, jobs = sweep(tmp_path, ("lr=1", "epochs=4", "epoch_s=1"))
    sweeping = threading.Thread(target=carry_out, args=(jobs, folder, make(folder)))
    sweeping.start()
    limit = time.monotonic() + 60
    table = folder.run(jobs[0]).metrics_table
    while not (table.is_file() and len(table.read_text().splitlines()) > 2) and time.monotonic() < limit:
        time.sleep(0.1)
    cluster.run("scontrol", "requeue", ids(folder)[0])
    sweeping.join(timeout=120)
    assert folder.run(jobs[0]).finished
    assert len((folder.path / "0" / "starts").read_text().splitlines()) == 2
    assert len(table.read_text().splitlines()) == 5


def test_end__cancels(cluster: Cluster, tmp_path: Path) -> None:
    folder, jobs = sweep(tmp_path, ("lr=1", "epochs=100", "epoch_s=1"))
    (job,) = make(folder).start(jobs)
    assert job is not None
    cluster.wait(ids(folder)[0], "RUNNING")
    assert job.poll() is None
    job.end()
    assert cluster.wait(ids(folder)[0]) == "CANCELLED"
    limit = time.monotonic() + 30
    while job.poll() is None and time.monotonic() < limit:
        time.sleep(0.2)
    assert job.poll() is not None


def test_start__what_slurm_refuses_is_said(tmp_path: Path) -> None:
    folder, jobs = sweep(tmp_path, ("lr=1",))
    with pytest.raises(ConfigError, match=r"sbatch refused .*partition"):
        make(folder, partition="nowhere").start(jobs)


def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="squeue does not answer"):
        make(SweepFolder(tmp_path))
