"""Signals to `mwa-eval`: it ends on the spot with one line, and leaves an evaluation that is whole, or none."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mwa_lightning.cli import evaluate as command
from mwa_lightning.errors import DataError
from mwa_lightning.metrics.recall import RetrievalRecall
from mwa_lightning.report import predictions
from mwa_lightning.training import evaluate as evaluation
from tests.faults.fork_server import Server

STOPPED = "mwa-eval: stopped by {}; start the same command again, an evaluation begins anew"
CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}
LINES = {75: STOPPED, 130: "mwa-eval: interrupted"}
FIGURES = ("metrics.json", "predictions.safetensors")


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A shell starts what runs in its background deaf to Ctrl-C, and what that starts inherits it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def words(whole: Path) -> list[str]:
    """What follows `mwa-eval`: 6 batches of images, 12 of captions, and what they were embedded as."""
    return [f"run={whole}", "save_predictions=true", "data.eval_batch_size=1"]


def figures_of(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in FIGURES]


def ends_with_one_line(words: list[str], number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    """An evaluation that the signal comes to."""
    assert command.main([*words, "run_dir=new"]) == CODES[number]
    assert capsys.readouterr().err == LINES[CODES[number]].format(number.name) + "\n"


@pytest.mark.slow
def test_eval__signals_at_random_moments(server: Server, words: list[str], tmp_path: Path) -> None:
    """Twelve and more, until six were heard; before mwa-eval listens, a signal ends it as it ends any process."""
    output = tmp_path / "output.txt"
    begin = time.monotonic()
    server.start("evaluate", [*words, f"run_dir={tmp_path / 'whole'}"], output)
    assert server.wait() == 0, output.read_text()
    seconds = time.monotonic() - begin
    draw = random.Random(0)
    heard = 0
    for number in range(60):
        if number >= 12 and heard >= 6:
            break
        told, run = list(CODES)[number % 3], tmp_path / str(number)
        output.unlink()
        server.start("evaluate", [*words, f"run_dir={run}"], output)
        time.sleep(draw.uniform(0.1, 0.9) * seconds)
        if not server.ended():
            os.kill(server.process, told)
        status = server.wait()
        said = output.read_text() if output.is_file() else ""
        assert "Traceback" not in said
        assert "Exception" not in said
        if status == 0:
            assert figures_of(run) == figures_of(tmp_path / "whole")
            continue
        if os.WIFSIGNALED(status):
            assert (os.WTERMSIG(status), said) == (told, "")
        else:
            heard += 1
            code = os.waitstatus_to_exitcode(status)
            assert code == CODES[told]
            assert said.splitlines()[-1] == LINES[code].format(told.name)
            assert said.count("mwa-eval: ") == 1
        assert not run.exists() or figures_of(run) == figures_of(tmp_path / "whole")
    assert heard >= 6
    server.start("evaluate", [*words, f"run_dir={tmp_path / '0'}"], output)
    assert server.wait() == 0
    assert figures_of(tmp_path / "0") == figures_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [
        (evaluation, "build_backbone", signal.SIGTERM),
        (RetrievalRecall, "compute", signal.SIGUSR1),
        (RetrievalRecall, "compute", signal.SIGINT),
        (predictions, "write_tensors", signal.SIGTERM),
        (os, "fsync", signal.SIGINT),
    ],
)
def test_eval__signal_at_awkward_moments(
    owner: object,
    name: str,
    number: signal.Signals,
    words: list[str],
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    handlers = [signal.getsignal(each) for each in CODES]
    original = getattr(owner, name)
    calls = []

    def disturbed(*arguments: object, **options: object) -> object:
        calls.append(name)
        result = original(*arguments, **options)
        signal.raise_signal(number)
        return result

    monkeypatch.setattr(owner, name, disturbed)
    ends_with_one_line(words, number, capsys)
    assert calls == [name]
    assert list(elsewhere.iterdir()) == []
    assert [signal.getsignal(each) for each in CODES] == handlers


def test_eval__what_a_library_catches_is_noted(
    words: list[str], elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends after the batch then."""
    update = RetrievalRecall.update

    def catching(*arguments: object, **options: object) -> None:
        update(*arguments, **options)
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            return

    monkeypatch.setattr(RetrievalRecall, "update", catching)
    assert command.main([*words, "run_dir=new"]) == 75
    assert capsys.readouterr().err == STOPPED.format("SIGTERM") + "\n"
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("number", CODES)
def test_eval__where_python_can_raise_nothing(
    number: signal.Signals,
    words: list[str],
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In what is called at the end of an object it only prints what comes up; the signal comes again then."""

    class Ending:
        def __del__(self) -> None:
            signal.raise_signal(number)

    calls = []

    def ending(*arguments: object, **options: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            Ending()
        time.sleep(0.1)

    monkeypatch.setattr(RetrievalRecall, "update", ending)
    ends_with_one_line(words, number, capsys)
    assert list(elsewhere.iterdir()) == []
    assert len(calls) == 1


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("kind", [RuntimeError, ValueError, DataError])
def test_eval__what_a_library_makes_something_else_of(
    kind: type[Exception],
    number: signal.Signals,
    words: list[str],
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """OmegaConf wraps what comes up in it, say."""

    def wrapping(*arguments: object, **options: object) -> None:
        try:
            signal.raise_signal(number)
        except BaseException as error:
            raise kind("it was here") from error

    monkeypatch.setattr(RetrievalRecall, "update", wrapping)
    ends_with_one_line(words, number, capsys)
    assert list(elsewhere.iterdir()) == []


def test_eval__an_earlier_evaluation_stays_whole(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert command.main([*words, f"run_dir={run}"]) == 0
    before = figures_of(run)
    with monkeypatch.context() as patch:
        patch.setattr(RetrievalRecall, "compute", lambda metric: signal.raise_signal(signal.SIGTERM))
        assert command.main([*words, f"run_dir={run}"]) == 75
    assert figures_of(run) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
def test_eval__signal_to_all_of_two_processes_and_their_loaders(
    number: signal.Signals, words: list[str], tmp_path: Path
) -> None:
    """One line, whichever of the processes hear it."""
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32", "data.num_workers=1"]
    main = "import sys; from mwa_lightning.cli.evaluate import main; sys.exit(main())"
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", main, *words, *two, f"run_dir={run}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not (run / "train.log").is_file():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=200)
    assert process.returncode == CODES[number], said
    assert said == LINES[CODES[number]].format(number.name) + "\n"
    assert not run.exists()
