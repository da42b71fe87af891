"""Several processes as one run: who is first, how the others are started, and how all of them end.

The first process composes and checks the configuration. Lightning's launcher would start the others with the
words of the command line, which each of them would compose anew (another time in `run_dir`, another working
directory under Hydra), so ours starts `python -m mwa_lightning.training.worker` and hands it the configuration
as it is. Processes that torchrun or srun has started compose for themselves, and take the configuration and the run
directory of the first.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import distributed, nn
from torch.distributed.constants import default_pg_timeout
from torch.nn.parallel import DistributedDataParallel

from mwa_lightning.errors import ConfigError, ConnectionLost, ProcessFailed, UserError
from mwa_lightning.report.terminal import complain
from mwa_lightning.system.signals import held_back
from mwa_lightning.system.slurm import Step, step
from mwa_lightning.training.distributed.gradient_reduction import mean_in_order_of_ranks
from mwa_lightning.training.lightning_private import SubprocessScriptLauncher, init_dist_connection

# What Lightning and we set for the processes of a run, and would leave behind in ours.
_ENVIRONMENT = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "GROUP_RANK",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
)

# Whether this process has met others of a run, at any time.
has_met = threading.Event()

# How long the first process waits for the one that failed, or for the last to end, in seconds.
_PATIENCE = 10.0


class Processes:
    """The processes of a run, seen from one of them; a run of one process is the usual case.

    Raises ConfigError if the configuration asks for another number than there are.
    """

    def __init__(self, config: DictConfig) -> None:
        trainer = config.trainer
        devices = trainer.devices
        if devices == "auto":
            devices = max(1, torch.cuda.device_count()) if trainer.accelerator == "gpu" else 1
        self.on_this_machine = int(devices)
        self.count = self.on_this_machine * int(trainer.num_nodes)
        by_torchrun, task = TorchElasticEnvironment.detect(), step()
        self.started_for_us = by_torchrun or task is not None
        if trainer.accelerator == "gpu":
            _check_gpus(int(devices), started_for_us=self.started_for_us)
        if by_torchrun and int(os.environ["WORLD_SIZE"]) != self.count:
            raise ConfigError(
                f"torchrun started {os.environ['WORLD_SIZE']} processes, trainer.devices x trainer.num_nodes is "
                f"{self.count}: make them equal"
            )
        if task is not None:
            _check_step(task, devices=int(devices), num_nodes=int(trainer.num_nodes))
            os.environ |= _as_torchrun(task)
        if trainer.num_nodes > 1 and not self.started_for_us:
            raise ConfigError(
                f"trainer.num_nodes={trainer.num_nodes}: start the command on all machines by srun or torchrun, "
                "or set trainer.num_nodes=1"
            )
        self.rank = 0
        if self.count > 1:
            self.rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
        self.config = config
        self.workers: list[subprocess.Popen[Any]] = []
        self.stopped = threading.Event()
        self._accelerator = str(trainer.accelerator)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def environment(self) -> ClusterEnvironment:
        """How Lightning learns of the ranks."""
        return TorchElasticEnvironment() if self.started_for_us else LightningEnvironment()

    def share(self, value: Any) -> Any:
        """The first process's value; alone, or before the processes have met, one's own."""
        if not distributed.is_initialized():
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    def wait(self) -> None:
        """Wait until all processes are here."""
        if distributed.is_initialized():
            distributed.barrier()

    def in_turn(self, work: Callable[[], None]) -> None:
        """Do what leaves files for all: the first process before the others."""
        if not self.first:
            self.wait()
        work()
        if self.first:
            self.wait()

    def agree_on_config(self) -> DictConfig:
        """The first process's configuration, whatever the others have composed from the same words."""
        if not distributed.is_initialized():
            return self.config
        shared = self.share(OmegaConf.to_container(self.config, resolve=True))
        self.config = OmegaConf.create(shared)
        return self.config

    def agree_on(self, run_dir: Path) -> Path:
        """The run directory of the first process, which workers are told too."""
        if self.count == 1:
            return run_dir
        path = Path(self.share(str(run_dir.absolute())))
        self.add({"run_dir": str(path)})
        return path

    def add(self, settings: dict[str, Any]) -> None:
        """Add to the configuration that workers are told."""
        self.config = with_settings(self.config, settings)

    def start_workers(self, count: int) -> None:
        """Start this machine's processes from local rank 1 on, and watch over them."""
        if self.workers or count < 2:
            return
        config = OmegaConf.to_yaml(self.config, resolve=True).encode()
        # -P: without the current directory among the places that modules come from.
        command = [sys.executable, "-P", "-m", "mwa_lightning.training.worker", str(os.getpid())]
        for local_rank in range(1, count):
            environment = os.environ | {"LOCAL_RANK": str(local_rank)}
            with held_back():
                self.workers.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE))
        self.watch()
        for worker in self.workers:
            assert worker.stdin is not None
            with contextlib.suppress(BrokenPipeError), worker.stdin as pipe:  # of one that has failed already
                pipe.write(config)

    def watch(self) -> None:
        """Watch over the workers until they are stopped."""
        _Observer(self).start()

    def join(self) -> None:
        """Meet at once where all processes were started for us."""
        if not self.started_for_us or self.count == 1 or distributed.is_initialized():
            return
        # As Lightning has it. NCCL's own would be a third, and the first process may have long to do before the others.
        options: dict[str, Any] = {"timeout": default_pg_timeout}
        backend = "gloo"
        if self._accelerator == "gpu":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
            backend, options["device_id"] = "nccl", device
        init_dist_connection(TorchElasticEnvironment(), backend, **options)
        has_met.set()

    def finish(self) -> None:
        """Wait for the workers, which have nothing left to do. Raises ProcessFailed if one of them failed."""
        failed = self.failed(patience=6 * _PATIENCE)
        self.stop()
        if failed is not None:
            raise failed

    def failed(self, *, patience: float) -> ProcessFailed | None:
        """The error of the first worker that failed, as soon as there is one; None if none fails within `patience`."""
        end = time.monotonic() + patience
        while True:
            codes = [worker.poll() for worker in self.workers]
            for rank, code in enumerate(codes, start=1):
                if code:
                    return ProcessFailed(rank=self.rank + rank, code=code)
            if None not in codes or time.monotonic() > end:
                return None
            time.sleep(0.05)

    def stop(self) -> None:
        """End the workers that still run; nobody watches over them any more."""
        self.stopped.set()
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()


@contextmanager
def processes_of(config: DictConfig) -> Iterator[Processes]:
    """The processes of a run from its beginning to its end; what goes wrong in one of them ends all.

    Raises ConfigError as `Processes` does, ProcessFailed if a process that this one has started failed, ConnectionLost
    if another one is gone.
    """
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    processes = Processes(config)
    threads, met = torch.get_num_threads(), distributed.is_initialized()
    try:
        processes.join()
        yield processes
        if distributed.is_initialized() and not met:
            distributed.destroy_process_group()
        processes.finish()
    except BaseException as error:
        # A process that is gone shows here as a broken connection; what it said tells more.
        lost = isinstance(error, RuntimeError) and not isinstance(error, UserError)
        failed = processes.failed(patience=_PATIENCE) if lost else None
        processes.stop()
        # Taking leave of the others waits for them, so only the last process there is does it.
        alone = processes.count == 1 or bool(processes.workers)
        if alone and distributed.is_initialized() and not met:
            distributed.destroy_process_group()
        if failed is not None:
            raise failed from error
        if processes.started_for_us and is_lost(error):
            raise ConnectionLost from error
        raise
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        torch.set_num_threads(threads)


def with_settings(config: DictConfig, settings: dict[str, Any]) -> DictConfig:
    """A copy of a configuration with some keys set, new ones among them."""
    copy = config.copy()
    with open_dict(copy):
        copy.update(settings)
    return copy


def is_lost(error: BaseException) -> bool:
    """Whether this is how a process learns that another one is gone; gloo has no type of error for it."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks, where all ask for them together."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def _check_gpus(devices: int, *, started_for_us: bool) -> None:
    """Raise ConfigError if this machine's processes cannot have a GPU each."""
    found = torch.cuda.device_count()
    if found == 0:
        raise ConfigError("trainer.accelerator=gpu: no GPU was found here; take trainer.accelerator=cpu")
    if devices > found:
        every_task = (
            ". Every task has to see all GPUs of its machine: under SLURM --gpus-per-node, not --gpus-per-task"
            if started_for_us
            else ""
        )
        raise ConfigError(
            f"trainer.devices={devices}: this process sees {found} GPU{'' if found == 1 else 's'}; take at most "
            f"trainer.devices={found}{every_task}"
        )


def _check_step(task: Step, *, devices: int, num_nodes: int) -> None:
    """Raise ConfigError if srun started other tasks than the configuration is for."""
    if task.tasks != devices * num_nodes or task.nodes != num_nodes:
        raise ConfigError(
            f"srun started {task.tasks} tasks on {_machines(task.nodes)}, trainer.devices={devices} and "
            f"trainer.num_nodes={num_nodes} need {devices * num_nodes} on {_machines(num_nodes)}: make "
            "--ntasks-per-node and --nodes equal to them"
        )


def _machines(count: int) -> str:
    return f"{count} machine{'' if count == 1 else 's'}"


def _as_torchrun(task: Step) -> dict[str, str]:
    """The variables by which torchrun tells a process who it is, of a task of srun."""
    return {
        "RANK": str(task.rank),
        "LOCAL_RANK": str(task.local_rank),
        "GROUP_RANK": str(task.node),
        "WORLD_SIZE": str(task.tasks),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", task.first_node),
        "MASTER_PORT": os.environ.get("MASTER_PORT", str(task.port)),
    }


class WorkerStrategy(DDPStrategy):
    """Lightning's DDP with our launcher; parameters that are declared unused are not reduced."""

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self._processes = processes

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = WorkerLauncher(
            self.cluster_environment, self.num_processes, self.num_nodes, processes=self._processes
        )

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        adapter: Any = model.get_submodule("model.adapter")
        unused = [f"model.{name}" for name in adapter.declared_unused]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, unused)
        return super()._setup_model(model)

    def _register_ddp_hooks(self) -> None:
        super()._register_ddp_hooks()
        if self.root_device.type == "cpu":
            assert isinstance(self.model, DistributedDataParallel)
            self.model.register_comm_hook(None, mean_in_order_of_ranks)


class WorkerLauncher(SubprocessScriptLauncher):
    """Lightning's launcher; only the command of the further processes, and who watches them, is ours."""

    def __init__(self, *arguments: Any, processes: Processes) -> None:
        super().__init__(*arguments)
        self._processes = processes
        self.procs = processes.workers  # ended by Lightning at a signal

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the further processes unless something else does, then call the function."""
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not environment.creates_processes_externally:
            os.environ["MASTER_ADDR"] = environment.main_address
            os.environ["MASTER_PORT"] = str(environment.main_port)
            os.environ["NODE_RANK"] = str(environment.node_rank())
            os.environ["LOCAL_RANK"] = "0"
            os.environ["WORLD_SIZE"] = str(self.num_processes * self.num_nodes)
            self._processes.start_workers(self.num_processes)
        return function(*args, **kwargs)


class _Observer(threading.Thread):
    """Ends the first process with a worker's exit code, should it still wait for that worker in vain.

    The usual end is an exception in the main thread, which stops the workers; from then on there is nothing to end,
    and the process may have other work to do.
    """

    def __init__(self, processes: Processes) -> None:
        super().__init__(daemon=True)
        self._processes = processes

    def run(self) -> None:
        stopped = self._processes.stopped
        while not stopped.wait(1.0):
            failed = self._processes.failed(patience=0)
            if failed is not None and not stopped.wait(2 * _PATIENCE):
                self._processes.stop()
                complain(f"error: {failed}")
                os._exit(failed.exit_code)
