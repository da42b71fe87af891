"""The very sbatch file on two machines: one run, one of them is lost, and a rank on the other fails."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.loading.sampling import GlobalBatchSampler
from mwa_lightning.data.sources import find_source
from tests.leftovers import left_by
from tests.slurm.cluster import Cluster
from tests.slurm.runs import PLACE, WORDS, output_of, run_of, submit, wait_for_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TWO = ("--nodes=2", "--ntasks-per-node=1")


def files_of(run: Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}


def process_of(job: str, rank: int) -> int:
    """The process of a rank: that which slurmstepd has started, and not the batch script, which is a rank 0 too."""
    own = {f"SLURM_JOB_ID={job}", "SLURM_STEP_ID=0", f"SLURM_PROCID={rank}"}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = re.search(r"^PPid:\s+(\d+)", (folder / "status").read_text(), re.MULTILINE)
            assert parent is not None
            started = (folder.parent / parent[1] / "comm").read_text().strip() == "slurmstepd"
            if started and own <= set((folder / "environ").read_text().split("\0")):
                return int(folder.name)
        except OSError:  # it has ended meanwhile
            continue
    raise AssertionError(f"no process of rank {rank}")


def test_train__two_machines_leave_what_two_tasks_of_one_do(machines: Cluster, folder: Path, whole: Path) -> None:
    job = submit(machines, folder, place=TWO)
    assert machines.wait(job, seconds=600) == "COMPLETED", output_of(folder, job)
    assert machines.about(job, "NodeList") == "n[1-2]"
    said, run = output_of(folder, job), run_of(folder, job)
    for line in ("What trains", "epoch 1 of 2", "Retrieval on the test split"):
        assert said.count(line) == 1, said
    assert "rank 1" not in said
    assert "num_nodes: 2" in (run / "config.yaml").read_text()
    assert (run / "train.log").read_text().count("What trains") == 1
    assert files_of(run) == files_of(whole)
    assert left_by(run) == left_by(whole)


# One of these on each of two machines starts two processes there.
TORCHRUN = (
    f"OMP_NUM_THREADS=1 {sys.executable} -m torch.distributed.run --nnodes=2 --node-rank=$SLURM_NODEID "
    "--nproc-per-node=2 --master-addr=n1 --master-port=29471"
)


def test_rank__of_torchruns(machines: Cluster, folder: Path) -> None:
    """What tells the processes of a machine apart is torchrun's."""
    script = folder / "rank.py"
    # In one piece: torchrun starts Python unbuffered, and the processes of a machine share a pipe.
    line = "f'rank {rank_of_process()}\\n'.encode()"
    script.write_text(f"import os\nfrom mwa_lightning.cli.command import rank_of_process\nos.write(1, {line})\n")
    said = machines.run("srun", *TWO, "bash", "-c", f"{TORCHRUN} {script}")
    assert sorted(said.splitlines()) == [f"rank {rank}" for rank in range(4)]


def test_train__by_torchruns(machines: Cluster, folder: Path) -> None:
    words = ("trainer=ddp", *WORDS, "trainer.devices=2", "trainer.num_nodes=2", "trainer.max_steps=3")
    command = f"{TORCHRUN} {folder}/bin/mwa-train data.root={folder}/scenes {' '.join(words)}"
    script = folder / "torchruns.sbatch"
    script.write_text(f"#!/bin/bash\nsrun --kill-on-bad-exit=1 bash -c '{command}'\n")
    place = (*PLACE, *TWO, "--job-name=mwa-train", "--output=%x-%j.out", f"--chdir={folder}")
    job = machines.submit(*place, script)
    assert machines.wait(job, seconds=600) == "COMPLETED", output_of(folder, job)
    said = output_of(folder, job)
    for line in ("What trains", "Retrieval on the test split"):
        assert said.count(line) == 1, said
    assert not re.search("rank [0-3]", said), said
    assert "devices: 2\n" in (run_of(folder, job) / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("how", "machine"),
    [
        # With the first machine go the batch script and srun: it is the other rank that finds it gone, and requeues.
        ("crash", "n1"),
        # Nothing is heard of the other machine: the first rank waits for it until SLURM has noticed.
        ("cut", "n2"),
    ],
)
def test_train__lost_machine(how: str, machine: str, machines: Cluster, folder: Path, whole: Path) -> None:
    """In the middle of the second epoch; what comes out is what the undisturbed job left."""
    job = submit(machines, folder, place=TWO)
    wait_for_step(run_of(folder, job), 16)
    machines.machine(how, machine)
    try:
        if how == "crash":
            end = time.monotonic() + 120
            while machines.about(job, "Restarts") == "0":
                assert time.monotonic() < end, output_of(folder, job)
                time.sleep(0.2)
        machines.run("scontrol", "update", f"nodename={machine}", "state=down", "reason=lost")
        machines.wait(job, "PENDING", seconds=120)  # so the other rank has ended
        assert files_of(run_of(folder, job)) <= files_of(whole) | {".lock"}
        machines.run("bash", "-c", f"cd {run_of(folder, job)}/checkpoints && sha256sum --check --strict sha256.txt")
    finally:
        machines.machine("boot", machine)
    assert machines.wait(job, seconds=600) == "COMPLETED", output_of(folder, job)
    assert machines.about(job, "Restarts") == "1"
    assert output_of(folder, job).count("resuming from") == 1
    assert files_of(run_of(folder, job)) == files_of(whole)
    assert left_by(run_of(folder, job)) == left_by(whole)


def test_train__mistake_that_shows_on_another_machine_ends_the_job(machines: Cluster, folder: Path) -> None:
    """A picture that only the other rank meets cannot be decoded."""
    root = folder / "broken"
    shutil.copytree(folder / "scenes", root)
    split = find_source(layout="scenes", root=root).read(Problems())["train"]
    sampler = GlobalBatchSampler(length=len(split.captions), batch_size=16, seed=42)
    owners = [split.captions[int(place)].image_index for place in sampler.global_batches(0)[0]]
    picture = Path(split.pictures[min(set(owners[8:]) - set(owners[:8]))].path)
    picture.write_bytes(picture.read_bytes()[:200])

    # A scale that is fitted is fitted to later batches too, in which the first rank may meet the picture.
    job = submit(machines, folder, f"data.root={root}", "task.logit_scale=pretrained", place=TWO)
    assert machines.wait(job) == "FAILED"
    said = output_of(folder, job)
    assert re.search(rf"rank 1: error: .*{picture.name}", said), said
    assert "mwa-train: error: another process of the run is gone" in said
    assert "Traceback" not in said
    assert machines.about(job, "Restarts") == "0"


def test_train__killed_rank_ends_the_job(machines: Cluster, folder: Path) -> None:
    """As where memory is short. The first is busy, and gets srun's SIGTERM before it misses the other."""
    job = submit(machines, folder, "trainer.max_epochs=20", place=TWO)
    wait_for_step(run_of(folder, job), 3)
    os.kill(process_of(job, 0), signal.SIGSTOP)
    os.kill(process_of(job, 1), signal.SIGKILL)
    assert machines.wait(job) == "FAILED"
    said = output_of(folder, job)
    assert "task 1: Killed" in said
    assert "mwa-train: error: another process of the run is gone" in said
    assert "Traceback" not in said
    assert machines.about(job, "Restarts") == "0"
