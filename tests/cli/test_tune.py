"""`mwa-tune`: what is refused, and whole searches of short runs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from mwa_lightning.cli import tune
from mwa_lightning.data.scenes.writing import write_scenes
from mwa_lightning.sweeps import local_launcher as local
from mwa_lightning.sweeps.study import SharedStudy
from tests.commands import start_command
from tests.sweeps.conftest import SHORT

TINY = (
    "adapter=head_only",
    "optim.warmup_epochs=0",
    "data.batch_size=8",
    "data.num_workers=0",
    "callbacks.progress_bar=false",
)
SPACE = "optim.lr=tag(log,interval(1e-5,1e-1))"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(root, domain="target", seed=3, train=8, val=4, test=6)
    return root


def start(*arguments: str, alone: bool = False) -> subprocess.Popen[str]:
    """`mwa-tune` as a process of its own."""
    return start_command("tune", *arguments, alone=alone)


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="study", storage=f"sqlite:///{folder / 'study.db'}").get_trials()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", ["at least one key", "interval"]),
        ("optim.lr=1e-3", ["at least one key"]),
        ("optim.lr=1,2 tune.objective=test/mean_recall", ["tune.objective=test/mean_recall", "never on test", "val/"]),
        ("optim.lr=1,2 training.monitor=test/mean_recall", ["training.monitor=test/mean_recall", "val/mean_recall"]),
        ("optim.lr=interval(-1,1)", ["job 0 (optim.lr=-1.0)", "above 0"]),
        ("adapter=mwa,mwaa", ["adapter=mwaa", "Did you mean mwa?"]),
        ("adapter=mwa,head_only adapter.mid_dim=8,16", ["adapter=head_only", "'adapter.mid_dim'"]),
        ("optim.lr=tag(log,interval(0,1))", ["optim.lr=tag(log,interval(0,1))", "cannot be searched in"]),
        (
            "optim.lr=1,2 tune.objective=val/nope",
            ["tune.objective=val/nope: nothing can be chosen by it", "val/i2t_r1"],
        ),
        ("optim.lr=1,2 optim.lr=1e-3", ["give at least one key several values"]),
        ("seed=range(4,4)", ["mwa-tune: error: seed=range(4,4): names no value\n"]),
        ("adapter=glob(zz*)", ["mwa-tune: error: adapter=glob(zz*): names no value\n"]),
        ("optim.lr=interval(2,1)", ["mwa-tune: error: optim.lr=interval(2,1): names no value\n"]),
        ("seed=range(1,3,0)", ["seed=range(1,3,0): the step of range(from, to, step) is 0"]),
        ("optim.lr=1,2 tune.trials=0", ["tune.trials=0", "from 1 up"]),
        ("optim.lr=1,2 tune.pruner=halving", ["median, hyperband, none"]),
        ("optim.lr=1,2 tune.prunner=none", ["Did you mean tune.pruner?"]),
        ("optim.lr=1,2 run_dir=taken", ["no multirun.yaml"]),
        ("optim.lr=1,2 run_dir=sweep", ["mwa-train --multirun", "another folder"]),
        ("optim.lr='[1", ["'[1", "not understood"]),
    ],
)
def test_tune__refused_before_anything_is_made(
    line: str, words: list[str], elsewhere: Path, refuses: Callable[..., None]
) -> None:
    for name, text in (("taken/letter.txt", ""), ("sweep/multirun.yaml", "jobs: {0: {overrides: [seed=1]}}")):
        (elsewhere / name).parent.mkdir()
        (elsewhere / name).write_text(text)
    refuses("mwa-tune", tune.main, line.split(), words)
    assert len(list(elsewhere.rglob("*"))) == 4


def test_tune__without_optuna(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert tune.main(["optim.lr=1,2"]) == 2
    assert "pip install 'mwa-lightning[tune]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("SIGTERM", 75, "mwa-tune: stopped by SIGTERM before anything began; start the same command again\n"),
        ("SIGUSR1", 75, "mwa-tune: stopped by SIGUSR1 before anything began; start the same command again\n"),
        ("SIGINT", 130, "mwa-tune: interrupted\n"),
    ],
)
@pytest.mark.parametrize("folder", [[], ["run_dir=search"]])
def test_tune__signal_while_it_starts(
    name: str, code: int, line: str, folder: list[str], scenes: Path, tmp_path: Path
) -> None:
    """It leaves nothing of a search that has not begun."""
    program = (
        "import os, signal, sys; from mwa_lightning.cli import tune; "
        "from mwa_lightning.cli.config import composing; compose = composing.compose_command; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # as a terminal starts it
        f"composing.compose_command = lambda *words: (os.kill(os.getpid(), signal.{name}), compose(*words))[1]; "
        "sys.exit(tune.main())"
    )
    words = [*TINY, f"data.root={scenes}", SPACE, *folder]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", line)
    assert list(tmp_path.iterdir()) == []


def damaged(database: Path) -> None:
    content = bytearray(database.read_bytes())
    content[4096:] = bytes(random.Random(0).randbytes(len(content) - 4096))
    database.write_bytes(content)


def lost(database: Path) -> None:
    database.unlink()


def empty(database: Path) -> None:
    database.write_bytes(b"")


def no_database(database: Path) -> None:
    database.write_text("notes of mine\n" * 1000)


def of_another_version(database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("update version_info set schema_version = 11, library_version = '2.0.0'")
        connection.execute("update alembic_version set version_num = 'v0.9.0.a'")
        connection.commit()


@pytest.fixture
def study(elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """The folder of a search of two trials, both through; further ones are short processes too."""
    monkeypatch.setattr(local, "TRAIN", SHORT)
    assert tune.main(["adapter=head_only", "optim.lr=1e-3,1e-2", "tune.trials=2", "run_dir=search"]) == 0
    assert capsys.readouterr().out.count("| through |") == 2
    return elsewhere / "search"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damaged, ["study.db", "damaged"]),
        (no_database, ["study.db", "not a database", "damaged"]),
        (of_another_version, ["study.db", "another version of optuna"]),
        (lost, ["run_dir=", "lost its study.db"]),
        (empty, ["study.db", "damaged"]),
    ],
)
def test_tune__database_that_cannot_be_read(
    damage: Callable[[Path], None], words: list[str], study: Path, refuses: Callable[..., None]
) -> None:
    damage(study / "study.db")
    refuses("mwa-tune", tune.main, ["run_dir=search", "tune.trials=3"], words)
    assert not (study / "2").exists()


def test_tune__database_that_is_locked(
    study: Path, refuses: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mwa_lightning.sweeps.study._WAIT", 0.2)
    with contextlib.closing(sqlite3.connect(study / "study.db")) as connection:
        connection.execute("begin exclusive")
        refuses("mwa-tune", tune.main, ["run_dir=search", "tune.trials=3"], ["database is locked", "another program"])
    assert tune.main(["run_dir=search", "tune.trials=3"]) == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("optim.lr=1e-3,1e-1", ["other words", "optim.lr=1e-3,1e-2, not optim.lr=1e-3,1e-1", "another folder"]),
        ("adapter=mwa optim.lr=1e-3,1e-2", ["other words"]),
        ("tune.seed=3", ["another seed: 42, not 3"]),
        ("tune.objective=val/t2i_r1", ["another objective: val/mean_recall, not val/t2i_r1"]),
        ("tune.sampler=random", ["another sampler: tpe, not random"]),
        ("tune.pruner=none tune.trials=9", ["another pruner: median, not none"]),
        ("tune.startup_trials=0", ["another startup_trials: 5, not 0"]),
        ("tune.warmup_epochs=0", ["another warmup_epochs: 1, not 0"]),
        ("tune.reduction_factor=2", ["another reduction_factor: 3, not 2"]),
    ],
)
def test_tune__another_search_in_the_folder(
    line: str, words: list[str], study: Path, refuses: Callable[..., None]
) -> None:
    before = set(study.iterdir())
    refuses("mwa-tune", tune.main, [*line.split(), "run_dir=search"], words)
    assert set(study.iterdir()) == before


@pytest.mark.parametrize(
    "settings",
    [
        ["tune.objective=val/t2i_r1", "tune.seed=3", "tune.sampler=random"],
        ["tune.pruner=hyperband", "tune.reduction_factor=2", "tune.startup_trials=1"],
    ],
)
def test_tune__run_dir_alone_goes_on_as_it_was_begun(
    settings: list[str], elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with the number of trials that was named last."""
    monkeypatch.setattr(local, "TRAIN", SHORT)
    words = ["adapter=head_only", SPACE, *settings]
    assert tune.main([*words, "tune.trials=4", "run_dir=whole"]) == 0
    assert tune.main([*words, "tune.trials=2", "run_dir=search"]) == 0
    numbers = []
    for further in ([], ["tune.trials=3"], [], ["tune.trials=4", *words], []):
        assert tune.main(["run_dir=search", *further]) == 0
        numbers.append(len(trials(elsewhere / "search")))
    assert numbers == [2, 3, 3, 4, 4]
    found, whole = ([(trial.params, trial.value) for trial in trials(elsewhere / name)] for name in ("search", "whole"))
    assert found == whole


def test_tune__no_search_to_go_on_with(elsewhere: Path, refuses: Callable[..., None]) -> None:
    words = ["run_dir=", "/nothere: holds no search to resume; give the overrides of one, such as 'optim.lr=tag("]
    refuses("mwa-tune", tune.main, ["run_dir=nothere", "tune.trials=3"], words)
    assert list(elsewhere.iterdir()) == []


def test_tune__database_goes_in_mid_search(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run that is under way is ended, and gone on with once the database is back."""
    copy = (study / "study.db").read_bytes()
    ask = SharedStudy.ask

    def breaking(shared: SharedStudy) -> Any:
        trial = ask(shared)
        no_database(study / "study.db")
        return trial

    with monkeypatch.context() as patch:
        patch.setattr(SharedStudy, "ask", breaking)
        assert tune.main(["run_dir=search", "tune.trials=3"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"mwa-tune: error: {study / 'study.db'} cannot be used (")
    assert captured.err.endswith("; then resume with its run_dir=\n")
    (study / "study.db").write_bytes(copy)
    assert tune.main(["run_dir=search", "tune.trials=3"]) == 0
    assert [trial.state for trial in trials(study)] == [TrialState.COMPLETE] * 3


def test_tune__full_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the first file is that there is no room for."""
    monkeypatch.setattr(local, "TRAIN", SHORT)
    words = ["adapter=head_only", SPACE, "tune.trials=3", f"run_dir={small_disk / 'search'}"]
    with (small_disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4096))
    for room in range(0, 1024, 28):
        os.truncate(small_disk / "ballast", 2**22 - room * 1024)
        code = tune.main(words)
        captured = capsys.readouterr()
        if code == 0:
            break
        *_, line = captured.err.splitlines()
        assert code == 2, captured.err
        assert "Traceback" not in captured.err
        words_of_it = ("No space left on device", "disk is full", "jobs failed", "trials one after the other failed")
        assert any(each in line for each in words_of_it), line
    assert code == 0
    assert [trial.state for trial in trials(small_disk / "search")][-3:] == [TrialState.COMPLETE] * 3


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_tune__killed_and_started_again(scenes: Path, tmp_path: Path) -> None:
    """SIGKILL to the search while a run trains: the run is waited for, and nothing is tried twice."""
    folder = tmp_path / "search"
    words = [*TINY, "trainer.max_steps=2", f"data.root={scenes}", SPACE, "tune.startup_trials=2", f"run_dir={folder}"]
    first = start(*words, "tune.trials=2")
    limit = time.monotonic() + 600
    while not (folder / "0" / "config.yaml").is_file() and time.monotonic() < limit:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert [trial.state for trial in trials(folder)] == [TrialState.RUNNING]

    second = start(f"run_dir={folder}", "tune.trials=3")
    out, error = second.communicate(timeout=1500)
    assert second.returncode == 0, error
    states = [trial.state for trial in trials(folder)]
    assert states == [TrialState.COMPLETE] * 3
    assert (folder / "0" / "train.log").read_text().count("What trains") == 1
    jobs = yaml.safe_load((folder / "multirun.yaml").read_text())["jobs"]
    assert sorted(jobs) == [0, 1, 2] == sorted(int(path.parent.name) for path in folder.glob("*/metrics.json"))
    values = {}
    for trial in trials(folder):
        number = trial.user_attrs.get("directory", trial.number)
        config = yaml.safe_load((folder / str(number) / "config.yaml").read_text())
        assert float(config["optim"]["lr"]) == trial.params["optim.lr"]
        values[number] = json.loads((folder / str(number) / "metrics.json").read_text())["val/mean_recall"]
        assert trial.value == values[number]
    assert out.count("| through |") == 3
    best = max(values.values())
    named = re.search(r"^best: .*/(\d+)\nmwa-train (.*)$", out, flags=re.MULTILINE)
    assert named is not None
    assert values[int(named[1])] == best
    assert f"data.root={scenes}" in named[2]


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_tune__stopped_ends_as_one_that_was_not(told: signal.Signals, scenes: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches the search and its runs, SIGTERM the search alone: runs save, no trial is lost or failed."""
    words = [*TINY, "trainer.max_epochs=3", f"data.root={scenes}", SPACE, "tune.startup_trials=2", "tune.trials=2"]
    words += ["tune.pruner=none", "callbacks.progress_bar=false", "adapter=mwa", "trainer.accelerator=cpu"]
    folder, codes, lines = tmp_path / "search", [], []
    for mark in ("epoch 1: training", "epoch 2: validation", "", None):
        process = start(*words, f"run_dir={folder}", alone=True)
        log = folder / "0" / "train.log"
        while mark is not None and process.poll() is None:
            if (not mark and (folder / "1.log").is_file()) or (mark and log.is_file() and mark in log.read_text()):
                (os.killpg if told == signal.SIGINT else os.kill)(process.pid, told)
                break
            time.sleep(0.01)
        out, error = process.communicate(timeout=600)
        codes.append(process.returncode)
        lines.append(error)
        assert "Traceback" not in out + error + "".join(path.read_text() for path in folder.glob("*.log"))
        if mark is not None:
            assert {trial.state for trial in trials(folder)} <= {TrialState.RUNNING, TrialState.COMPLETE}
    assert codes == [130 if told == signal.SIGINT else 75] * 3 + [0]
    assert [error.splitlines()[-1] for error in lines[:3]] == [
        f"mwa-tune: stopped by {told.name}; resume with run_dir={folder}"
    ] * 3
    assert (folder / "0" / "train.log").read_text().count("resuming from") == 2
    whole = tmp_path / "whole"
    _, error = (process := start(*words, f"run_dir={whole}")).communicate(timeout=600)
    assert process.returncode == 0, error
    assert [(t.number, t.state, t.params, t.value) for t in trials(folder)] == [
        (t.number, t.state, t.params, t.value) for t in trials(whole)
    ]
    for number in ("0", "1"):
        adapters = [(each / number / "adapter.safetensors").read_bytes() for each in (folder, whole)]
        assert adapters[0] == adapters[1]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_tune__two_work_together_and_end_hopeless_runs(scenes: Path, tmp_path: Path) -> None:
    """Of two learning rates one is worse from the first epoch on: it is ended early, and stays readable."""
    folder = tmp_path / "search"
    words = [*TINY, "trainer.max_epochs=12", f"data.root={scenes}", "optim.lr=choice(1e-2,1e-9)", f"run_dir={folder}"]
    words += ["tune.trials=6", "tune.startup_trials=1", "tune.sampler=random", "training.monitor=val/t2i_r1"]
    words += ["tune.seed=4"]  # begins with the better one
    both = [start(*words), start(*words)]
    for process in both:
        _, error = process.communicate(timeout=2500)
        assert process.returncode == 0, error
    found = trials(folder)
    assert len(found) == 6
    assert len({trial.user_attrs["owner"] for trial in found}) == 2
    pruned = [trial for trial in found if trial.state == TrialState.PRUNED]
    assert pruned
    assert {trial.state for trial in found} == {TrialState.PRUNED, TrialState.COMPLETE}
    best = max((trial for trial in found if trial.state == TrialState.COMPLETE), key=lambda trial: trial.value)
    for trial in pruned:
        run = folder / str(trial.number)
        assert trial.params["optim.lr"] != best.params["optim.lr"]
        assert yaml.safe_load((run / "config.yaml").read_text())["training"]["monitor"] == "val/t2i_r1"
        assert (run / "checkpoints" / "last.ckpt").is_file()
        assert not (run / "metrics.json").is_file()
    shown = subprocess.run(
        [sys.executable, "-m", "mwa_lightning.cli.compare", folder], capture_output=True, text=True, check=True
    )
    assert shown.stdout.count("| pruned after epoch ") == len(pruned)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_tune__trials_that_do_not_learn(tiny_run: list[str], tmp_path: Path) -> None:
    """They are pruned with their reason, the search goes on, and its best is one that learns."""
    folder = tmp_path / "search"
    words = [*tiny_run, "adapter.mid_dim=4", "adapter.enhancer=none", "optim.lr=1e-3", "optim.warmup_epochs=0"]
    words += ["trainer.max_epochs=10", "trainer.check_val_every_n_epoch=10", "training.collapsed=stop"]
    words += ["tune.trials=4", "tune.sampler=random", "tune.pruner=none", "adapter.scale=1e-45,0.6"]
    process = start(*words, f"run_dir={folder}")
    out, error = process.communicate(timeout=2500)
    assert process.returncode == 0, error
    dead = [trial.number for trial in trials(folder) if float(trial.params["adapter.scale"]) < 0.1]
    assert 0 < len(dead) < 4
    for trial in trials(folder):
        pruned = trial.number in dead
        assert trial.state == (TrialState.PRUNED if pruned else TrialState.COMPLETE)
        state = "did not learn (exit code 5), dead" if pruned else "through"
        assert re.search(rf"^\| {trial.number} \| \S+ \| {re.escape(state)} \|", out, re.MULTILINE), out
    assert f"trial {dead[0]} did not learn (exit code 5): mwa-train: error: nothing trains in adapter" in out
