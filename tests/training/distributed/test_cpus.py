"""Threads and loading processes: what the machine gives, what the run keeps, what the user has set."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import DictConfig

from mwa_lightning.training.distributed import cpus
from mwa_lightning.training.distributed.cpus import Cpus, cpus_here, loading_processes, wait_passively
from mwa_lightning.training.evaluate import evaluate
from mwa_lightning.training.fit import fit

MakeConfig = Callable[..., DictConfig]
Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this machine another one, where the user has set nothing."""
    for name in [name for name in os.environ if name.startswith("SLURM_")] + ["OMP_NUM_THREADS"]:
        monkeypatch.delenv(name, raising=False)

    def be(
        count: int, *, load: float = 0.0, affinity: int | None = None, quota: float = math.inf, **variables: str
    ) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: count)
        monkeypatch.setattr(cpus, "_affinity", lambda: affinity or count)
        monkeypatch.setattr(cpus, "_quota", lambda: quota)
        monkeypatch.setattr(cpus, "_load", lambda: load)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return be


@pytest.mark.parametrize(
    ("here", "processes", "each", "free"),
    [
        ({"count": 2}, 1, 2, 2),
        ({"count": 2, "load": 0.4}, 1, 2, 2),
        ({"count": 2, "load": 7.9}, 1, 2, 2),
        ({"count": 1, "load": 7.9}, 1, 1, 1),
        ({"count": 16, "load": 40.0}, 1, 16, 2),
        ({"count": 2}, 4, 1, 1),
        ({"count": 64, "affinity": 16}, 4, 4, 4),
        ({"count": 64, "load": 60.0, "affinity": 16}, 1, 16, 4),
        ({"count": 64, "load": 30.0, "quota": 2.5}, 1, 2, 2),
        ({"count": 64, "quota": 0.5}, 1, 1, 1),
    ],
)
def test_cpus_here__affinity_quota_and_load(
    here: dict[str, float], processes: int, each: int, free: int, machine: Machine
) -> None:
    machine(**here)
    found = cpus_here(processes)
    assert (found.each, found.free, found.load) == (each, free, here.get("load", 0.0))


STEP = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NODELIST": "a",
}


@pytest.mark.parametrize(
    ("affinity", "variables", "each"),
    [
        (64, {"SLURM_CPUS_PER_TASK": "6"}, 1),  # one task, which starts four processes
        (64, {"SLURM_CPUS_PER_TASK": "6", "SLURM_CPUS_ON_NODE": "24"}, 6),  # torchrun in a job of four tasks
        (64, {**STEP, "SLURM_CPUS_PER_TASK": "6", "SLURM_CPUS_ON_NODE": "24"}, 6),
        (64, {**STEP, "SLURM_CPUS_ON_NODE": "24"}, 6),
        (5, {**STEP, "SLURM_CPUS_PER_TASK": "6"}, 5),  # bound to its own
    ],
)
def test_cpus_here__of_a_job_are_its_own_whatever_the_load(
    affinity: int, variables: dict[str, str], each: int, machine: Machine
) -> None:
    machine(64, load=90.0, affinity=affinity, **variables)
    assert cpus_here(4) == Cpus(each, each, None)


@pytest.mark.parametrize(
    ("files", "groups", "quota"),
    [
        ({"cpu.max": "250000 100000"}, "0::/", 2.5),
        ({"cpu.max": "max 100000", "a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 4.0),
        ({"cpu.max": "300000 100000"}, "0::/not/seen/here", 3.0),
        (
            {"cpu/a/cpu.cfs_quota_us": "150000", "cpu/a/cpu.cfs_period_us": "100000", "cpu/cpu.cfs_quota_us": "-1"},
            "5:memory:/x\n4:cpu,cpuacct:/a\n0::/",
            1.5,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", math.inf),
        ({}, "", math.inf),
    ],
)
def test_quota__of_control_groups(files: dict[str, str], groups: str, quota: float, tmp_path: Path) -> None:
    (tmp_path / "own").write_text(f"{groups}\n" if groups else "")
    for name, content in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(f"{content}\n")
    assert cpus._quota(tmp_path / "own", tmp_path / "root") == quota


def test_load__of_what_has_ended_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (7.5, 7.0, 6.0))
    monkeypatch.setattr(Path, "read_text", lambda path: "7.50 7.00 6.00 2/129 27668")
    assert cpus._load() == 1.0
    monkeypatch.setattr(Path, "read_text", lambda path: "7.50 7.00 6.00 12/129 27668")
    assert cpus._load() == 7.5
    monkeypatch.setattr(Path, "read_text", lambda path: "")
    assert cpus._load() == 7.5


def test_loading_processes__by_the_cpus_of_each_gpu() -> None:
    assert [loading_processes(free, gpu=True) for free in (1, 2, 8, 64)] == [1, 1, 7, 16]
    assert [loading_processes(free, gpu=False) for free in (1, 2, 8, 64)] == [1, 1, 2, 8]


@pytest.mark.parametrize(
    ("options", "here", "variables", "line"),
    [
        ((), (2, 7.9), {}, "2 CPUs, load 7.9: 2 threads, 1 loading process"),
        ((), (16, 0.2), {}, "16 CPUs, load 0.2: 16 threads, 4 loading processes"),
        ((), (1, 0.2), {}, "1 CPU, load 0.2: 1 thread, 0 loading processes"),
        ((), (16, 0.2), {"OMP_NUM_THREADS": "3,1"}, "16 CPUs, load 0.2: 3 threads by OMP_NUM_THREADS, 4 loading"),
        (
            ("trainer.threads=5", "data.num_workers=0"),
            (2, 0),
            {"OMP_NUM_THREADS": "3"},
            "2 CPUs, load 0.0: 5 threads, ",
        ),
        (("trainer.devices=4",), (16, 0), {}, "16 CPUs, load 0.0: 4 threads per rank, 1 loading process"),
        (("trainer.accelerator=gpu", "trainer.devices=4"), (48, 0), {}, "48 CPUs, load 0.0: 4 threads per rank, 11 lo"),
    ],
)
def test_choose__says_what_and_why(
    options: tuple[str, ...], here: tuple[int, float], variables: dict[str, str], line: str, machine: Machine,
    make_config: MakeConfig,
) -> None:  # fmt: skip
    machine(here[0], load=here[1], **variables)
    config = make_config("data.num_workers=auto", *options)
    assert cpus._choose(config, {}, here=config.trainer.devices)[1].startswith(line)


@pytest.mark.parametrize(("processes", "threads"), [(1, 6), (2, 3), (4, 1), (8, 1)])
def test_choose__of_another_number_of_processes_is_a_function_of_the_first(
    processes: int, threads: int, machine: Machine, make_config: MakeConfig
) -> None:
    machine(64)
    begun = {"chosen": {"threads": 6, "num_workers": 1, "processes": 1}}
    chosen, line = cpus._choose(make_config(), begun, here=processes)
    assert chosen["threads"] == threads
    assert "as the run began" in line


def test_fit__goes_on_with_the_threads_that_it_began_with(
    make_config: MakeConfig, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    machine(3, load=1.2)
    fit(make_config("trainer.max_epochs=1"))
    assert set_to[0] == 2
    content = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert content["trainer"]["threads"] == "auto"
    assert content["chosen"] == {"threads": 2, "num_workers": 0, "processes": 1}
    machine(8, OMP_NUM_THREADS="5")
    fit(make_config("trainer.max_epochs=1"))
    fit(make_config("trainer.max_epochs=1", f"resume={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}", run="other"))
    fit(make_config("trainer.max_epochs=1", "trainer.threads=4"))
    evaluate(make_config(f"adapter.checkpoint={tmp_path / 'run' / 'adapter.safetensors'}", command="evaluate", run="e"))
    assert set_to[::2] == [2, 2, 2, 4, 5]  # and what it was before, after each
    log = (tmp_path / "run" / "train.log").read_text()
    assert "3 CPUs, load 1.2: 2 threads, 0 loading processes (trainer.threads, data.num_workers)" in log
    assert "8 CPUs, load 0.0: 2 threads as the run began, 0 loading" in log


def test_wait_passively__what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("KMP_BLOCKTIME", raising=False)
    wait_passively()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["KMP_BLOCKTIME"]) == ("ACTIVE", "0")


def test_command__waits_passively_before_torch_is_there() -> None:
    code = (
        "import os, sys; sys.argv = ['mwa-train', '--version']; from mwa_lightning.cli.train import main; main(); "
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["PASSIVE", "False"]
