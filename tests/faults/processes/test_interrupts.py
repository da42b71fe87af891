"""Ctrl-C in `mwa-train`: it saves and ends with 130, a second one ends it at once, and it goes on to the same bytes."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from mwa_lightning.cli.command import Command, run
from mwa_lightning.errors import Interrupted
from mwa_lightning.system.signals import Signals, interruptible
from tests.faults.fork_server import Server

Left = Callable[[Path], Any]

NOTICE = "mwa-train: Ctrl-C: ends after this step, or after validation, and saves; once more ends it at once"
SAVED = r"mwa-train: stopped by SIGINT after step (\d+), which is saved; resume with run_dir={run}"
AGAIN = "mwa-train: stopped by SIGINT during the evaluation, which is to be made again; resume with run_dir={run}"
LEFT = "mwa-train: stopped by SIGINT, as the other ranks were; resume with run_dir={run}"  # whichever heard it first
ON_THE_SPOT = "mwa-train: interrupted; (resume with run_dir={run}|nothing was written yet, start again)"
BEFORE = "mwa-train: interrupted"  # before it knows what to run


@pytest.fixture(autouse=True, scope="module")
def _interruptible() -> Iterator[None]:
    """A shell starts what runs in its background deaf to Ctrl-C, and what that starts inherits it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def server(_interruptible: None) -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def words(tiny_command: list[str]) -> list[str]:
    """What follows `mwa-train`: 36 steps, so that every phase lasts a while."""
    return [*tiny_command, "data.batch_size=2", "data.eval_batch_size=1", "training.checkpoint_every_n_steps=null"]


@pytest.fixture(scope="module")
def whole(words: list[str], server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    server.start("train", [*words, f"run_dir={folder / 'run'}"], folder / "output.txt")
    assert server.wait() == 0, (folder / "output.txt").read_text()
    return folder / "run"


def said_by(output: Path) -> list[str]:
    """What a command has printed for people, without the lines of its log and its tables."""
    text = output.read_text() if output.is_file() else ""
    assert "Traceback" not in text, text
    assert "Exception" not in text, text
    assert "rror" not in text, text
    return [line for line in text.splitlines() if line.startswith("mwa-train: ")]


def matches(said: str, run: Path, *lines: str) -> bool:
    """Whether it is one of these lines about a run."""
    return any(re.fullmatch(line.format(run=run), said) for line in lines)


def wait_for(mark: str, log: Path, ended: Callable[[], bool]) -> None:
    """Wait until a run has logged the mark."""
    while True:
        over = ended()
        said = log.read_text() if log.is_file() else ""
        if re.search(mark, said):
            return
        assert not over, said
        time.sleep(0.001)


def ctrl_c(server: Server, times: int, words: list[str], run: Path, output: Path, *, mark: str) -> int:
    """The wait status of a run that Ctrl-C comes to at the mark; where it came too late, of another one.

    So it may be on a machine with much else to do: the whole of the final evaluation takes 40 ms.
    """
    for _ in range(10):
        server.start("train", [*words, f"run_dir={run}"], output)
        wait_for(mark, run / "train.log", server.ended)
        for number in range(times):
            while number and not said_by(output) and not server.ended():
                pass
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.process, signal.SIGINT)
        status = server.wait()
        if status != 0 and (times == 1 or os.WIFSIGNALED(status)):  # a second one may meet the end of the step
            return status
        shutil.rmtree(run)
        output.unlink(missing_ok=True)
    raise AssertionError(f"ten times it came too late for {mark!r}")


@pytest.mark.parametrize(
    ("mark", "line"),
    [
        (r"epoch 2: training", SAVED),
        (r"epoch 2: validation\n", SAVED),
        (r"epoch 2: validated[\s\S]*writing last\.ckpt", SAVED),
        (r"split test", ON_THE_SPOT),
    ],
    ids=["in an epoch", "in validation", "while saving", "in the final evaluation"],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_train__saves_and_ends(
    mark: str, line: str, workers: int, words: list[str], whole: Path, server: Server, tmp_path: Path, left_by: Left
) -> None:
    run, output = tmp_path / "run", tmp_path / "output.txt"
    options = [*words, f"data.num_workers={workers}"]
    assert os.waitstatus_to_exitcode(ctrl_c(server, 1, options, run, output, mark=mark)) == 130
    *notice, last = said_by(output)
    assert matches(last, run, line)
    assert notice == ([NOTICE] if line == SAVED else [])
    server.start("train", [*options, f"run_dir={run}"], output)
    assert server.wait() == 0
    assert left_by(run) == left_by(whole)


def test_train__second_time_ends_it_at_once(
    words: list[str], whole: Path, server: Server, tmp_path: Path, left_by: Left
) -> None:
    run, output = tmp_path / "run", tmp_path / "output.txt"
    status = ctrl_c(server, 2, words, run, output, mark=r"epoch 2: training")
    assert os.WTERMSIG(status) == signal.SIGINT
    assert said_by(output) == [NOTICE]
    server.start("train", [*words, f"run_dir={run}"], output)
    assert server.wait() == 0
    assert left_by(run) == left_by(whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_train__random_moments(words: list[str], whole: Path, server: Server, tmp_path: Path, left_by: Left) -> None:
    """From the first moment to the last, with processes that read data and without."""
    begin = time.monotonic()
    server.start("train", [*words, f"run_dir={tmp_path / 'timed'}"], tmp_path / "output.txt")
    assert server.wait() == 0
    seconds = time.monotonic() - begin
    draw = random.Random(7)
    runs, ends = [tmp_path / "run_0"], []
    for number in range(24):
        run, output = runs[-1], tmp_path / f"output_{number}.txt"
        server.start("train", [*words, f"data.num_workers={draw.choice((0, 2))}", f"run_dir={run}"], output)
        time.sleep(draw.uniform(0.02, 0.8) * seconds)
        if not server.ended():
            os.kill(server.process, signal.SIGINT)
        code = os.waitstatus_to_exitcode(server.wait())
        said = said_by(output)
        if code == 0:
            runs.append(tmp_path / f"run_{len(runs)}")
            continue
        ends.append(code)
        assert code == 130
        assert matches(said[-1], run, SAVED, AGAIN, ON_THE_SPOT, BEFORE)
        assert said[:-1] in ([], [NOTICE])
    assert len(ends) >= 12
    server.start("train", [*words, f"run_dir={runs[-1]}"], tmp_path / "output.txt")
    assert server.wait() == 0
    for run in runs:
        assert left_by(run) == left_by(whole)


def process(*arguments: str, output: Path) -> subprocess.Popen[bytes]:
    """`mwa-train` as a terminal starts it, in a group of its own; first it says that Python has begun."""
    main = "import sys; from mwa_lightning.cli.train import main; print('begun', flush=True); sys.exit(main())"
    with output.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-c", main, *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_train__while_it_starts(words: list[str], tmp_path: Path) -> None:
    """While libraries are imported, data is read and the model is built nothing is saved, and nothing is left."""
    run = tmp_path / "run"
    words = [*words, "trainer.max_epochs=200"]  # it is not to end by itself, however late the signal comes
    begin = time.monotonic()
    with process(*words, f"run_dir={run}", output=tmp_path / "output.txt") as started:
        wait_for("What trains", run / "train.log", lambda: started.poll() is not None)
        seconds = time.monotonic() - begin
        started.kill()
    draw = random.Random(3)
    for number in range(16):
        run, output = tmp_path / f"run_{number}", tmp_path / f"output_{number}.txt"
        with process(*words, f"run_dir={run}", output=output) as started:
            wait_for("begun", output, lambda: started.poll() is not None)
            limit, log = time.monotonic() + draw.random() * seconds, run / "train.log"
            while time.monotonic() < limit and not (log.is_file() and "What trains" in log.read_text()):
                time.sleep(0.001)
            os.killpg(started.pid, signal.SIGINT)
            code = started.wait(timeout=60)
        said = said_by(output)
        assert code == 130
        assert matches(said[-1], run, BEFORE, ON_THE_SPOT, SAVED)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "mark",
    [r"epoch 1: training", r"epoch 10: validation\n", r"of step 72\n.*wrote last"],
    ids=["in an epoch", "in validation", "after training"],
)
def test_train__two_processes_and_their_loaders(mark: str, words: list[str], tmp_path: Path, left_by: Left) -> None:
    """A terminal sends it to all of them."""
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32", "data.num_workers=1"]
    options = [*words, *two, "data.batch_size=2", "trainer.max_epochs=12", "training.zero_shot=false"]
    run, output = tmp_path / "run", tmp_path / "output.txt"
    with process(*options, f"run_dir={run}", output=output) as started:
        wait_for(mark, run / "train.log", lambda: started.poll() is not None)
        os.killpg(started.pid, signal.SIGINT)
        code = started.wait(timeout=200)
    assert code == 130
    lines = (AGAIN, ON_THE_SPOT, LEFT) if "72" in mark else (SAVED,)
    assert matches(said_by(output)[-1], run, *lines)
    for each in (run, tmp_path / "whole"):
        with process(*options, f"run_dir={each}", output=tmp_path / "second.txt") as started:
            assert started.wait(timeout=300) == 0, (tmp_path / "second.txt").read_text()
    assert left_by(run) == left_by(tmp_path / "whole")


def test_interruptible__also_where_nothing_can_be_raised() -> None:
    """Python swallows what is raised in a finalizer, or in what the import of a module calls."""

    class Leaving:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted), interruptible(Signals()):
        time.sleep(0 * id(Leaving()) + 10)


def test_interruptible__also_where_a_library_makes_an_error_of_it() -> None:
    def library() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException as error:
            raise ValueError("not understood") from error

    with pytest.raises(Interrupted), interruptible(Signals()):
        library()


def test_run__also_where_a_library_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def compose(words: list[str]) -> DictConfig:
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        return OmegaConf.create()

    def execute(config: DictConfig) -> None:
        raise AssertionError("executed")

    command = Command(name="mwa-test", config_name="train", compose=compose, execute=execute, usage="")
    assert run(command, []) == 130
    assert capsys.readouterr().err == "mwa-test: interrupted\n"
