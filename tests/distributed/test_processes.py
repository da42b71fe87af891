"""Who is first, what is refused, what a failed process leaves, and parameters without gradients under DDP."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from typing import NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.errors import ConfigError, ProcessFailed, TrainingError
from mwa_lightning.training.callbacks.guards import MissingGradientGuard
from mwa_lightning.training.distributed import processes as module
from mwa_lightning.training.distributed.processes import Processes, WorkerStrategy, processes_of
from mwa_lightning.training.lightning_warnings import quiet


def config(*, devices: int | str = 1, num_nodes: int = 1, accelerator: str = "cpu") -> DictConfig:
    return OmegaConf.create({"trainer": {"accelerator": accelerator, "devices": devices, "num_nodes": num_nodes}})


def test_processes__torchrun_with_another_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConfigError, match=r"torchrun started 2 processes.* is 1"):
        Processes(config())
    assert not Processes(config(devices=2)).first


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is one of two that torchrun has started on this machine."""
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("second_of_two")
@pytest.mark.parametrize(
    ("cards", "devices", "message"),
    [
        (0, 2, "trainer.accelerator=gpu: no GPU was found here; take trainer.accelerator=cpu"),
        (0, "auto", "trainer.accelerator=gpu: no GPU was found here; take trainer.accelerator=cpu"),
        (
            1,
            2,
            "trainer.devices=2: this process sees 1 GPU; take at most trainer.devices=1. Every task has to see all "
            "GPUs of its machine: under SLURM --gpus-per-node, not --gpus-per-task",
        ),
    ],
)
def test_processes_of__too_few_cards(
    cards: int, devices: int | str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found before the processes meet, each at its card."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    with pytest.raises(ConfigError) as caught, processes_of(config(devices=devices, accelerator="gpu")):
        pass
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("cards", "devices", "message"),
    [
        (0, 1, "trainer.accelerator=gpu: no GPU was found here; take trainer.accelerator=cpu"),
        (1, 2, "trainer.devices=2: this process sees 1 GPU; take at most trainer.devices=1"),
    ],
)
def test_processes__too_few_cards_of_ones_own(
    cards: int, devices: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    with pytest.raises(ConfigError) as caught:
        Processes(config(devices=devices, accelerator="gpu"))
    assert str(caught.value) == message


@pytest.mark.usefixtures("second_of_two")
@pytest.mark.parametrize(
    ("accelerator", "backend", "further"),
    [("cpu", "gloo", {}), ("gpu", "nccl", {"device_id": torch.device("cuda", 1)})],
)
def test_join__waits_half_an_hour(
    accelerator: str, backend: str, further: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With NCCL too, whose own patience is ten minutes."""
    called: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(module, "init_dist_connection", lambda _, backend, **more: called.append((backend, more)))
    Processes(config(devices=2, accelerator=accelerator)).join()
    assert called == [(backend, {"timeout": timedelta(minutes=30), **further})]


def test_processes__several_machines_need_torchrun() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.num_nodes=2: .*torchrun"):
        Processes(config(num_nodes=2))


@pytest.mark.parametrize(
    ("code", "exit_code", "message"),
    [("raise SystemExit(2)", 2, "rank 1 ended with exit code 2"), ("import os; os.abort()", 1, "by signal 6")],
)
def test_processes_of__broken_connection_is_the_fault_of_who_failed(code: str, exit_code: int, message: str) -> None:
    workers: list[subprocess.Popen[bytes]] = []

    def lose_one() -> None:
        with processes_of(config(devices=2)) as processes:
            for task in (code, "import time; time.sleep(60)"):
                processes.workers.append(subprocess.Popen([sys.executable, "-c", task]))
            workers.extend(processes.workers)
            raise RuntimeError("connection closed by peer")

    with pytest.raises(ProcessFailed, match=message) as caught:
        lose_one()
    assert caught.value.exit_code == exit_code
    assert all(worker.poll() is not None for worker in workers)


def test_processes_of__failure_at_the_very_end() -> None:
    with pytest.raises(ProcessFailed, match="exit code 3"), processes_of(config(devices=2)) as processes:
        processes.workers.append(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]))


@pytest.mark.parametrize(
    ("main", "exit_code"), [("time.sleep(60)", 3), ("processes.stop(); time.sleep(3)", 0), ("raise KeyError", 1)]
)
def test_processes__watch(main: str, exit_code: int) -> None:
    """A process that waits in vain for one that failed is ended; one that has stopped its workers lives on."""
    code = f"""
import subprocess, sys, time
from omegaconf import OmegaConf
from mwa_lightning.training.distributed import processes as module
module._PATIENCE = 0.1
settings = OmegaConf.create({{"trainer": {{"accelerator": "cpu", "devices": 2, "num_nodes": 1}}}})
processes = module.Processes(settings)
processes.workers.append(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]))
processes.watch()
{main}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == exit_code, done.stderr
    assert ("error: rank 1 ended with exit code 3" in done.stderr) == (exit_code == 3)


class Batch(NamedTuple):
    x: Tensor
    sample_ids: list[str]


class Lazy(AdapterMethod):
    """Has a part that nothing uses."""

    def __init__(self, *, declared: bool) -> None:
        super().__init__()
        self.idle = nn.Linear(2, 2)
        if declared:
            self.declared_unused = frozenset({"adapter.idle.weight", "adapter.idle.bias"})

    def place(self, *_: object) -> None:
        """Nothing."""


class Toy(pl.LightningModule):
    def __init__(self, *, declared: bool) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"adapter": Lazy(declared=declared), "head": nn.Linear(4, 1)})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss: Tensor = self.model["head"](batch.x).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("declared", [True, False])
def test_pain_8__parameters_without_gradient_are_named(declared: bool) -> None:
    """Declared ones are not waited for; others are named, before DDP's reduction breaks down over them."""
    toy = Toy(declared=declared)
    before = toy.model["head"].weight.detach().clone()
    adapter = toy.model["adapter"]
    assert isinstance(adapter, Lazy)
    loader = DataLoader([Batch(torch.ones(4), ["a"]) for _ in range(3)], batch_size=1)
    settings = config()
    with quiet(), processes_of(settings) as processes:
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            strategy=WorkerStrategy(processes),
            max_epochs=1,
            callbacks=[MissingGradientGuard(declared_unused=adapter.declared_unused)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        if declared:
            trainer.fit(toy, loader)
            assert trainer.global_step == 3
            assert not torch.equal(toy.model["head"].weight, before)
        else:
            with pytest.raises(TrainingError, match=r"no gradient after one step: adapter\.idle\.bias"):
                trainer.fit(toy, loader)
