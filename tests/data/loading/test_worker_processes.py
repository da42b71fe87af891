"""Loading processes that hang at their fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mwa_lightning.data.datamodule import RetrievalDataModule
from mwa_lightning.data.loading import worker_processes
from mwa_lightning.data.text.tokenizers import SentencePieceTokenizer
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


# A command whose children wait for work, which they say their numbers of before.
KILLED = """
import multiprocessing, sys, time
from mwa_lightning.data.loading import worker_processes
from torch.utils.data import DataLoader

if sys.argv[1] == "loader":
    class Slow(list):
        def __getitem__(self, index):
            return bytes(2_000_000)
    loader = DataLoader(
        Slow(range(100)), num_workers=2, worker_init_fn=worker_processes.begin, prefetch_factor=20, batch_size=None,
        multiprocessing_context=worker_processes.WorkerContext(),
    )
    batches = iter(loader)
    next(batches)
else:
    from concurrent.futures import ProcessPoolExecutor
    from mwa_lightning.data.inspection import _take_reader
    pool = ProcessPoolExecutor(
        2, mp_context=multiprocessing.get_context("fork"), initializer=_take_reader, initargs=(None,)
    )
    list(pool.map(abs, range(10)))
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("kind", ["loader", "pool"])
def test_killed_parent__leaves_no_process_behind(kind: str) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, kind], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        children = [int(number) for number in process.stdout.readline().split()]
        assert len(children) == 2
        process.kill()
    end = time.monotonic() + 30
    while alive := [child for child in children if _lives(child)]:
        assert time.monotonic() < end, alive
        time.sleep(0.05)


def _lives(process: int) -> bool:
    """Whether a process is there, and not one that has ended and that nobody waits for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
