"""Jobs of the very sbatch file: how they are submitted, and what they leave."""

from __future__ import annotations

import time
from pathlib import Path

from tests.slurm.cluster import Cluster

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm" / "train.sbatch"
# A cluster without graphics cards, of one processor a task.
PLACE = ("--gpus-per-node=0", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=20")
WORDS = (
    "trainer.accelerator=cpu",
    "trainer.precision=32",
    "data.batch_size=8",
    "data.num_workers=1",
    "optim.lr=1e-4",
    "optim.warmup_epochs=0",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "training.zero_shot=false",
)


def submit(jobs: Cluster, folder: Path, *words: str, place: tuple[str, ...] = ()) -> str:
    return jobs.submit(*PLACE, *place, f"--chdir={folder}", SCRIPT, f"data.root={folder / 'scenes'}", *WORDS, *words)


def run_of(folder: Path, job: str) -> Path:
    return folder / "logs" / "retrieval" / "scenes_mwa" / job


def output_of(folder: Path, job: str) -> str:
    return (folder / f"mwa-train-{job}.out").read_text()


def wait_for_step(run: Path, step: int, *, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not (run / "metrics.csv").is_file() or f"\n{step}," not in (run / "metrics.csv").read_text():
        assert time.monotonic() < end, f"no step {step} after {seconds:.0f} s"
        time.sleep(0.05)
