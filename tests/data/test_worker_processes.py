"""Loading processes that hang at their fork."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mwa_lightning.data import worker_processes
from mwa_lightning.data.datamodule import RetrievalDataModule
from mwa_lightning.data.tokenizers import SentencePieceTokenizer
from mwa_lightning.errors import DataError

Load = Callable[[int], list[Tensor]]

_folder: Path | None = None


def _after_fork() -> None:
    """Note the process; hang if a file says so, and take that away."""
    if _folder is None:
        return
    (_folder / str(os.getpid())).touch()
    for file in _folder.glob("hang*"):
        file.unlink()
        while True:
            signal.pause()


os.register_at_fork(after_in_child=_after_fork)


@pytest.fixture
def forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that gets a file for each fork, named after its process; a file `hang...` in it has one of them hang."""
    folder = tmp_path / "forks"
    folder.mkdir()
    monkeypatch.setattr(f"{__name__}._folder", folder)
    monkeypatch.setattr(worker_processes, "_PATIENCE", (1.0, 1.0, 60.0))
    return folder


@pytest.fixture
def load(write_karpathy: Callable[..., Path], tokenizer: SentencePieceTokenizer) -> Load:
    """The images of a split, as so many processes load them."""
    root = write_karpathy(splits={"test": 9})

    def load(num_workers: int) -> list[Tensor]:
        data = RetrievalDataModule(
            layout="karpathy",
            root=root,
            tokenizer=tokenizer,
            image_size=8,
            batch_size=2,
            eval_batch_size=2,
            num_workers=num_workers,
        )
        data.setup("test")
        return [batch.images for batch in data.evaluation_dataloaders("test")[0]]

    return load


def alive(forks: Path) -> list[int]:
    """Which of the forked processes are still there."""
    return [int(file.name) for file in forks.iterdir() if file.name.isdigit() and Path("/proc", file.name).exists()]


@pytest.mark.parametrize("hanging", [0, 1, 2])
def test_worker__that_hangs_is_replaced(
    hanging: int, forks: Path, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(hanging):
        (forks / f"hang{number}").touch()
    batches = load(2)
    assert len(list(forks.iterdir())) == 2 + hanging
    assert caplog.text.count("a loading process did not begin within 1 seconds: another takes its place") == hanging
    assert alive(forks) == []
    for found, wanted in zip(batches, load(0), strict=True):
        assert torch.equal(found, wanted)


def test_worker__all_hang(forks: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_processes, "_PATIENCE", (0.5, 0.5))
    for number in range(4):
        (forks / f"hang{number}").touch()
    with pytest.raises(DataError, match="no loading process begins here, after 2 tries: set it to 0"):
        load(2)
    assert len([file for file in forks.iterdir() if file.name.isdigit()]) == 2
    assert alive(forks) == []


def test_worker__signal_while_it_is_waited_for(forks: Path, load: Load) -> None:
    (forks / "hang").touch()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            load(2)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert alive(forks) == []


@pytest.mark.parametrize(
    ("error", "told"), [(ConnectionResetError(), False), (EOFError(), False), (ValueError(), True)]
)
def test_begin__parent_that_leaves_in_mid_batch(
    error: Exception, told: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """Python's thread that hands a batch over gives what goes wrong to `sys.excepthook`."""

    def work() -> None:
        worker_processes.begin(0)
        sys.excepthook(type(error), error, None)

    process = worker_processes.WorkerProcess(target=work)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (type(error).__name__ in capfd.readouterr().err) == told
