"""SIGTERM and SIGUSR1 at awkward moments: the run saves, ends with 75, and goes on to the same bytes and figures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mwa_lightning.cli import train as command
from mwa_lightning.data.base import SplitDataModule
from mwa_lightning.training.callbacks.run_keeper import RunKeeper
from mwa_lightning.training.callbacks.stopping import StopAgreement
from mwa_lightning.training.runs.checkpointing import LAST, CheckpointFiles
from tests.leftovers import left_by

OPTIONS = (
    "adapter.mid_dim=4",
    "adapter.enhancer_dim=4",
    "adapter.dropout=0.1",
    "training.zero_shot=true",
    "callbacks.progress_bar=false",
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def words(tiny_run: list[str]) -> list[str]:
    """What follows `mwa-train`: two epochs of three steps, saved at their ends."""
    return [*tiny_run, *OPTIONS]


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run without a signal."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert command.main([*words, f"run_dir={run}"]) == 0
    return run


def steps_saved(run: Path) -> int:
    """The optimizer step of the last checkpoint."""
    files = CheckpointFiles(run / "checkpoints")
    return int(files.load_checkpoint(run / "checkpoints" / LAST)["global_step"])


def send(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


class During:
    """Sends signals when a method is called for the n-th time, before it does its work or after."""

    def __init__(
        self, patch: pytest.MonkeyPatch, owner: Any, name: str, *, call: int, after: bool = False, number: int = 1
    ) -> None:
        original = getattr(owner, name)
        self.calls = 0

        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            mine = self.calls == call
            for _ in range(number if mine and not after else 0):
                send()
            result = original(*arguments, **options)
            for _ in range(number if mine and after else 0):
                send()
            return result

        patch.setattr(owner, name, wrapped)


Moment = tuple[Any, str, dict[str, Any], int]
MOMENTS: dict[str, Moment] = {
    # owner, method, which call, the step that is saved then
    "before the first step": (RunKeeper, "on_train_start", {"call": 1}, 1),
    "in mid-step": (StopAgreement, "on_train_batch_start", {"call": 2}, 2),
    "in an epoch's last step": (StopAgreement, "on_train_batch_start", {"call": 3}, 3),
    "twice in one step": (StopAgreement, "on_train_batch_start", {"call": 5, "number": 2}, 5),
    "in validation": (RunKeeper, "on_validation_end", {"call": 1}, 3),
    "in mid-save": (torch, "save", {"call": 1, "after": True}, 4),
    "in the last save": (torch, "save", {"call": 2, "after": True}, 6),
    # Zero-shot and at the end, two batches of images and three of captions each.
    "in the evaluation": (StopAgreement, "on_test_batch_end", {"call": 8}, 6),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_train__saves_ends_and_goes_on(
    moment: str,
    words: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    owner, name, options, step = MOMENTS[moment]
    run = tmp_path / "run"
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with monkeypatch.context() as patch:
        During(patch, owner, name, **options)
        code = command.main([*words, f"run_dir={run}"])
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == handlers
    assert code == 75
    where = f"after step {step}, which is saved"
    if moment in ("in the last save", "in the evaluation"):
        where = "during the evaluation, which is to be made again"
    assert capsys.readouterr().err == f"mwa-train: stopped by SIGTERM {where}; resume with run_dir={run}\n"
    assert steps_saved(run) == step
    assert not any(path.name.startswith(".") for path in run.rglob("*"))
    assert command.main([*words, f"run_dir={run}"]) == 0
    assert left_by(run) == left_by(whole)


def test_train__signal_before_there_is_a_run(
    words: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the set-up of the data nothing is written yet; in the zero-shot evaluation, the configuration is."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        During(patch, SplitDataModule, "setup", call=1)
        assert command.main([*words, f"run_dir={run}"]) == 75
    said = capsys.readouterr().err
    assert said == "mwa-train: stopped by SIGTERM before the first step; nothing was written yet, start again\n"
    assert not run.exists()
    with monkeypatch.context() as patch:
        During(patch, StopAgreement, "on_test_batch_end", call=2)
        assert command.main([*words, f"run_dir={run}"]) == 75
    assert not any((run / "checkpoints").iterdir())
    assert command.main([*words, f"run_dir={run}"]) == 0
    assert left_by(run) == left_by(whole)


def test_train__saves_when_the_accumulated_step_is_made(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes in the first of two batches; nothing between them can be saved."""
    options = [*words, "trainer.accumulate_grad_batches=2", "training.zero_shot=false", "data.batch_size=4"]
    assert command.main([*options, f"run_dir={tmp_path / 'whole'}"]) == 0
    with monkeypatch.context() as patch:
        During(patch, StopAgreement, "on_train_batch_start", call=3)
        assert command.main([*options, f"run_dir={tmp_path / 'run'}"]) == 75
    assert steps_saved(tmp_path / "run") == 2
    assert command.main([*options, f"run_dir={tmp_path / 'run'}"]) == 0
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


def test_train__usr2_where_it_is_asked_for(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other signal is as it was: here its handler counts."""
    came: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
    start = RunKeeper.on_train_start

    def both(*arguments: Any) -> None:
        send(signal.SIGUSR1)
        send(signal.SIGUSR2)
        start(*arguments)

    monkeypatch.setattr(RunKeeper, "on_train_start", both)
    options = ("training.requeue_signal=USR2", "training.zero_shot=false")
    try:
        assert command.main([*words, *options, f"run_dir={tmp_path / 'run'}"]) == 75
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert came == [signal.SIGUSR1]
    assert "stopped by SIGUSR2 after step 1" in (tmp_path / "run" / "train.log").read_text()


COMMAND = "from mwa_lightning.cli.train import main; sys.exit(main())"


def run_as_process(program: str, words: list[str]) -> tuple[int, str]:
    """The exit code of a program that starts mwa-train, and what it has to say of errors."""
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1"])
def test_train__signal_after_the_last_line(number: str, words: list[str], whole: Path, tmp_path: Path) -> None:
    """Python ends, which takes a while with so many libraries: the run is through, and is to count as that."""
    run = tmp_path / "run"
    shot = f"import atexit, os, signal, sys; atexit.register(os.kill, os.getpid(), signal.{number})"
    assert run_as_process(f"{shot}; {COMMAND}", [*words, f"run_dir={run}"]) == (0, "")
    assert left_by(run) == left_by(whole)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1"])
def test_train__signal_before_the_first_line(number: str, words: list[str], tmp_path: Path) -> None:
    """The configuration is being composed: a job that dies of it is not requeued."""
    shot = (
        "import os, signal, sys; from mwa_lightning.cli.config import composing; read = composing.read_request; "
        f"composing.read_request = lambda *_, **__: (os.kill(os.getpid(), signal.{number}), read(*_, **__))[1]"
    )
    said = f"mwa-train: stopped by {number} before the first step; nothing was written yet, start again\n"
    assert run_as_process(f"{shot}; {COMMAND}", [*words, f"run_dir={tmp_path / 'run'}"]) == (75, said)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_train__signal_to_all_of_two_processes_and_their_loaders(
    number: signal.Signals, words: list[str], tmp_path: Path
) -> None:
    """As SLURM may do it: to the whole tree of processes, of which only two may mind."""
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32", "data.num_workers=1"]
    options = [*words, *two, "data.batch_size=4", "trainer.max_epochs=40", "training.zero_shot=false"]
    options += ["trainer.log_every_n_steps=1", "trainer.check_val_every_n_epoch=10"]
    train = [sys.executable, "-c", f"import sys; {COMMAND}", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    table = tmp_path / "run" / "metrics.csv"
    with subprocess.Popen(
        [*train, f"run_dir={tmp_path / 'run'}"],
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not table.is_file() or "\n8," not in table.read_text():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 75, said
    assert said.startswith(f"mwa-train: stopped by {number.name} after step "), said
    assert said.count("\n") == 1, said
    assert 8 < steps_saved(tmp_path / "run") < 120
    for run in ("run", "whole"):
        subprocess.run([*train, f"run_dir={tmp_path / run}"], env=environment, check=True)
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")
