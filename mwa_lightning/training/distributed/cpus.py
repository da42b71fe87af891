"""How many threads and loading processes a run takes: what it may use of this machine, less what others use of it now.

Nothing heavy is imported: how waiting threads behave is settled before torch is.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mwa_lightning.system.slurm import step

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mwa_lightning.training.distributed.processes import Processes

AUTO = "auto"
THREADS = "OMP_NUM_THREADS"
CHOSEN = "chosen"  # the node of the configuration that holds what was chosen
# A thread that waits for others spins by default, and takes the CPU from those it waits for where there are too few.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}  # of GNU's, and of LLVM's and Intel's OpenMP

_MOST_THREADS_BESIDE_GPU = 4  # the host only prepares work there
_MOST_LOADERS_BESIDE_CPU, _MOST_LOADERS_BESIDE_GPU = 8, 16
_CPUS_A_LOADER = 4  # decoding takes a small part of the time of a step that is computed on CPUs
# A busy CPU is shared by thread: on two loaded cores a step took 0.6 to 1.2 s with two threads, 1.7 to 2.0 s with one.
_FEWEST_THREADS = 2
_LOOKS, _PAUSE = 5, 0.02  # at what runs now, and the seconds between two of them


def wait_passively() -> None:
    """Have threads sleep while they wait, in this process and those it starts; before torch is imported.

    What the user has set stays.
    """
    for name, value in PASSIVE.items():
        os.environ.setdefault(name, value)


@dataclass(frozen=True)
class Cpus:
    """The CPUs of each of the processes of a run on this machine.

    `each` is what it may use, `free` what others leave of it, but 2 or more where it may use 2; `load` is that of the
    machine by others, None where what this job was given is its own.
    """

    each: int
    free: int
    load: float | None


def cpus_here(processes: int = 1) -> Cpus:
    """The CPUs of each of so many equal processes on this machine, by affinity, control group, SLURM and load."""
    affinity, quota = _affinity(), _quota()
    per_task, on_node = (_number(os.environ.get(f"SLURM_CPUS_{name}")) for name in ("PER_TASK", "ON_NODE"))
    given = on_node or per_task
    if step() is not None:  # each of the processes is a task, which may be bound to its own CPUs
        own = per_task or (on_node and max(1, on_node // processes))
        each = min(affinity, quota / processes, own or math.inf)
    else:
        each = min(affinity, quota, given or math.inf) / processes
    each = max(1, int(each))
    if given is not None:
        return Cpus(each, each, None)
    load = _load()
    free = ((os.cpu_count() or 1) - load) / processes
    return Cpus(each, min(each, max(_FEWEST_THREADS, round(free))), load)


def loading_processes(free: int, *, gpu: bool) -> int:
    """How many processes load data for one that trains or evaluates, and has so many CPUs; 0 = it does so itself."""
    if gpu:
        return min(_MOST_LOADERS_BESIDE_GPU, max(1, free - 1))
    return min(_MOST_LOADERS_BESIDE_CPU, max(1, free // _CPUS_A_LOADER))


def settle_cpus(
    config: DictConfig, processes: Processes, *, begun: Mapping[str, Any] | None = None
) -> tuple[DictConfig, str]:
    """Choose where `trainer.threads` or `data.num_workers` is auto; torch takes the threads, `chosen` says both.

    The first process chooses for all. Another number of threads rounds otherwise: by auto, a run that goes on keeps the
    number that it began with, which the configuration `begun` says. Returns the configuration, and the line to be said.
    """
    import torch

    from mwa_lightning.training.distributed.processes import with_settings

    said = ""
    chosen = config.get(CHOSEN)  # in a process that the first has started
    if chosen is None:
        if processes.first:
            chosen, said = _choose(config, begun or {}, here=processes.on_this_machine)
        chosen = processes.share(chosen)
        processes.add({CHOSEN: chosen})
    torch.set_num_threads(chosen["threads"])
    return with_settings(config, {CHOSEN: chosen}), said


def _choose(config: DictConfig, begun: Mapping[str, Any], *, here: int) -> tuple[dict[str, int], str]:
    """What a run takes whose first start, if there was one, had the configuration `begun`; and the line about it."""
    gpu = config.trainer.accelerator == "gpu"
    cpus = cpus_here(here)
    threads, workers, why = config.trainer.get("threads", AUTO), config.data.num_workers, ""
    if threads == AUTO:
        threads = min(cpus.free, _MOST_THREADS_BESIDE_GPU) if gpu else cpus.free
        if earlier := begun.get(CHOSEN):
            # Where the number of processes has changed, a function of both numbers, so that each start finds the same.
            threads, why = max(1, earlier["threads"] * earlier["processes"] // here), " as the run began"
        elif asked := _number(os.environ.get(THREADS, "").partition(",")[0]):
            threads, why = asked, f" by {THREADS}"
    if workers == AUTO:
        workers = 0 if cpus.each == 1 and not gpu else loading_processes(cpus.free, gpu=gpu)
    line = (
        f"{_counted(cpus.each * here, 'CPU', 'CPUs')}{'' if cpus.load is None else f', load {cpus.load:.1f}'}: "
        f"{_counted(threads, 'thread', 'threads')}{' per rank' if here > 1 else ''}{why}"
        f"{', more than there are CPUs' if threads > cpus.each else ''}, "
        f"{_counted(workers, 'loading process', 'loading processes')} (trainer.threads, data.num_workers)"
    )
    return {"threads": threads, "num_workers": workers, "processes": here}, line


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _number(text: str | None) -> int | None:
    """A whole number from 1 up, None for anything else."""
    return int(text) if text and text.isdecimal() and int(text) else None


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load() -> float:
    """What runs or wants to, beside this: the last minute's average, or what does now where that has ended since."""
    average = os.getloadavg()[0]
    running = []
    for _ in range(_LOOKS):
        try:
            fields = Path("/proc/loadavg").read_text().split()
            running.append(int(fields[3].partition("/")[0]) - 1)  # without this process, which looks
        except (OSError, ValueError, IndexError):  # not on macOS
            return average
        time.sleep(_PAUSE)
    return max(0.0, min(average, sum(running) / len(running)))


def _quota(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """The CPUs that the control groups of this process (v2 or v1) allow it; infinity where none sets a limit."""
    limits = [math.inf]
    for line in _read(groups).splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root
        # In a container the name may be one of the host's, and only the top is seen.
        folder = top / name.strip("/")
        limits += [_limit(each) for each in (folder, *folder.parents) if each.is_relative_to(top)]
    return min(limits)


def _limit(folder: Path) -> float:
    quota, _, period = _read(folder / "cpu.max").strip().partition(" ")  # v2
    if not quota:
        quota, period = (_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdecimal() and _number(period) else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
