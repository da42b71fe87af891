"""`mwa-tune`: what is refused, and whole searches of short runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from mwa_lightning.cli import tune
from mwa_lightning.data.scenes import write_scenes

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


def start(*arguments: str) -> subprocess.Popen[str]:
    """`mwa-tune` as a process of its own."""
    command = [sys.executable, "-m", "mwa_lightning.cli.tune", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


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
        ("optim.lr=1,2 tune.trials=0", ["tune.trials=0", "from 1 up"]),
        ("optim.lr=1,2 tune.pruner=halving", ["median, hyperband, none"]),
        ("optim.lr=1,2 tune.prunner=none", ["Did you mean tune.pruner?"]),
        ("optim.lr=1,2 run_dir=taken", ["no multirun.yaml"]),
        ("optim.lr=1,2 run_dir=sweep", ["mwa-train --multirun", "another folder"]),
        ("optim.lr=[1", ["'optim.lr=[1'", "not understood"]),
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
def test_tune__two_work_together_and_end_hopeless_runs(scenes: Path, tmp_path: Path) -> None:
    """Of two learning rates one is worse from the first epoch on: it is ended early, and stays readable."""
    folder = tmp_path / "search"
    words = [*TINY, "trainer.max_epochs=12", f"data.root={scenes}", "optim.lr=choice(1e-2,1e-9)", f"run_dir={folder}"]
    words += ["tune.trials=6", "tune.startup_trials=1", "tune.sampler=random", "training.monitor=val/t2i_r1"]
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
