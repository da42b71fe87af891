"""What SLURM's variables say about a process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from mwa_lightning.cli.command import rank_of_process
from mwa_lightning.errors import ConfigError
from mwa_lightning.system.slurm import batch_job, makes_room, requeue, step
from mwa_lightning.training.distributed.processes import Processes, processes_of

TASK = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "1",
}


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)


def config(*, devices: int, num_nodes: int) -> DictConfig:
    return OmegaConf.create({"trainer": {"accelerator": "cpu", "devices": devices, "num_nodes": num_nodes}})


@pytest.mark.usefixtures("task")
@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[07-08]", "gpu07"), ("a,b", "a"), ("r[2,5-9]-n[1-4],z", "r2-n1"), ("host", "host"), ("a1,b[1-2]", "a1")],
)
def test_step__first_node(nodes: str, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NODELIST", nodes)
    found = step()
    assert found is not None
    assert found.first_node == first
    assert (found.rank, found.local_rank, found.node) == (11, 3, 1)


@pytest.mark.usefixtures("task")
def test_step__one_task_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts the further processes itself."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert step() is None
    assert not Processes(config(devices=2, num_nodes=1)).started_for_us


@pytest.fixture
def torchrun(task: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of a torchrun that srun has started on each of two machines."""
    machine = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    ranks = {"TORCHELASTIC_RUN_ID": "none", "RANK": "11", "LOCAL_RANK": "3", "GROUP_RANK": "1", "WORLD_SIZE": "16"}
    for name, value in (machine | ranks).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("torchrun")
def test_step__torchruns_are_none_and_their_processes_have_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert step() is None
    assert rank_of_process() == 11
    before = dict(os.environ)
    monkeypatch.setattr(Processes, "join", lambda self: None)  # there are no fifteen others to meet
    with processes_of(config(devices=8, num_nodes=2)) as processes:
        assert processes.started_for_us
        assert (processes.rank, processes.first, processes.count) == (11, False, 16)
        environment = processes.environment
        assert (environment.global_rank(), environment.local_rank(), environment.node_rank()) == (11, 3, 1)
        assert dict(os.environ) == before
    with pytest.raises(ConfigError, match=r"torchrun started 16 processes.* is 2: make them equal"):
        Processes(config(devices=1, num_nodes=2))


def test_batch_job__the_same_after_a_requeueing_and_none_in_an_interactive_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENVIRONMENT", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "1236")
    assert batch_job() is None
    monkeypatch.setenv("ENVIRONMENT", "BATCH")
    assert batch_job() == "1236"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "1234")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert batch_job() == "1234_2"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes a command out of lines of a shell; there are no others."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name: str, lines: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / name).chmod(0o755)

    return make


@pytest.fixture
def last_of_array(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job of an array that has the array's own number."""
    for name, value in {"SLURM_JOB_ID": "40", "SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "1"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("last_of_array")
def test_requeue__one_job_of_an_array(command: Callable[[str, str], None]) -> None:
    command("squeue", '[ "$3" = --jobs=40_1 ] || echo RUNNING\necho RUNNING')
    command("scontrol", '[ "$*" = "requeue 40_1" ]')
    assert requeue("start again") == "job 40_1 was requeued"


@pytest.mark.usefixtures("last_of_array")
@pytest.mark.parametrize(
    ("about", "answer"),
    [
        ("JobState=RUNNING PreemptTime=None", False),
        ("JobState=COMPLETING PreemptTime=None", True),
        ("JobState=RUNNING PreemptTime=2026-01-01T10:00:00", True),
    ],
)
def test_makes_room__one_job_of_an_array(command: Callable[[str, str], None], about: str, answer: bool) -> None:
    command("scontrol", f'[ "$4" = 40_1 ] || echo JobState=RUNNING PreemptTime=None\necho {about}')
    assert makes_room() == answer


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)


@pytest.mark.usefixtures("job")
@pytest.mark.parametrize(
    ("squeue", "scontrol", "said"),
    [
        ("echo RUNNING", ":", "job 7 was requeued"),
        # As SLURM does of an option in its configuration, or a locale.
        ("echo warning >&2; echo RUNNING", "echo warning >&2", "job 7 was requeued"),
        ("echo COMPLETING", "exit 1", "SLURM is ending job 7 itself; should it not start again, resume with run_dir=x"),
        (":", "exit 1", "job 7 is not in the queue and was not requeued"),
        (
            "echo RUNNING",
            "echo 'slurm_requeue error:  Requested operation is disabled' >&2; exit 1",
            "job 7 could not be requeued (slurm_requeue error: Requested operation is disabled): resume with run_dir=x",
        ),
        (
            "exit 3",
            ":",
            "job 7 could not be requeued (squeue ended with exit code 3): resume with run_dir=x",
        ),
        (
            "echo RUNNING",
            None,
            "job 7 could not be requeued (scontrol cannot be run here: no such file or directory): resume with "
            "run_dir=x",
        ),
    ],
)
def test_requeue__by_what_slurm_answers(
    squeue: str, scontrol: str | None, said: str, command: Callable[[str, str], None]
) -> None:
    command("squeue", squeue)
    if scontrol is not None:
        command("scontrol", scontrol)
    assert requeue("resume with run_dir=x") == said


@pytest.mark.usefixtures("job")
def test_requeue__without_commands_of_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a container."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert requeue("start again") == (
        "job 7 could not be requeued (squeue cannot be run here: no such file or directory): start again"
    )
    assert makes_room()


@pytest.mark.usefixtures("task")
@pytest.mark.parametrize(("devices", "num_nodes"), [(8, 1), (4, 4), (2, 2)])
def test_processes__tasks_of_another_number(devices: int, num_nodes: int) -> None:
    before = dict(os.environ)
    with pytest.raises(ConfigError, match=r"srun started 16 tasks on 2 machines, trainer\.devices="):
        Processes(config(devices=devices, num_nodes=num_nodes))
    assert dict(os.environ) == before


@pytest.mark.usefixtures("task")
def test_processes__tasks_that_see_one_card_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """As --gpus-per-task=1 has it."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"trainer\.devices=8: this process sees 1 GPU.*not --gpus-per-task"):
        Processes(OmegaConf.merge(config(devices=8, num_nodes=2), {"trainer": {"accelerator": "gpu"}}))


@pytest.mark.usefixtures("task")
def test_processes__rank_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    monkeypatch.setattr(Processes, "join", lambda self: None)  # there are no fifteen others to meet
    with processes_of(config(devices=8, num_nodes=2)) as processes:
        assert (processes.rank, processes.first, processes.count) == (11, False, 16)
        environment = processes.environment
        assert (environment.global_rank(), environment.local_rank(), environment.node_rank()) == (11, 3, 1)
        assert (environment.main_address, environment.main_port) == ("gpu07", 15000 + 1234)
        assert environment.world_size() == 16
        assert environment.creates_processes_externally
    assert dict(os.environ) == before
