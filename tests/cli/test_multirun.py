"""`mwa-train --multirun`: what a grid is, what is refused, and how its folder is gone on with."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mwa_lightning.cli import evaluate, train
from mwa_lightning.cli.grid import grid
from mwa_lightning.cli.multirun import numbered
from mwa_lightning.data.scenes.writing import write_scenes
from mwa_lightning.errors import ConfigError
from mwa_lightning.sweeps.folder import Job
from tests.commands import start_command

TINY = (
    "trainer.max_steps=2",
    "optim.warmup_epochs=0",
    "data.batch_size=8",
    "data.num_workers=0",
    "callbacks.progress_bar=false",
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(root, domain="target", seed=3, train=8, val=4, test=6)
    return root


def start(*arguments: str, alone: bool = False) -> subprocess.Popen[str]:
    """`mwa-train` as a process of its own."""
    return start_command("train", *arguments, alone=alone)


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=1500)
    return process.returncode, out, error


def metrics(run: Path) -> dict[str, float]:
    return json.loads((run / "metrics.json").read_text())


def recorded(folder: Path) -> dict[int, list[str]]:
    jobs = yaml.safe_load((folder / "multirun.yaml").read_text())["jobs"]
    return {number: entry["overrides"] for number, entry in jobs.items()}


def test_grid__last_key_changes_fastest() -> None:
    assert grid(["seed=1,2", "adapter=mwa", "optim.lr=1e-3,3e-3"]) == [
        ("seed=1", "adapter=mwa", "optim.lr=0.001"),
        ("seed=1", "adapter=mwa", "optim.lr=0.003"),
        ("seed=2", "adapter=mwa", "optim.lr=0.001"),
        ("seed=2", "adapter=mwa", "optim.lr=0.003"),
    ]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("seed=range(1,4)", ["1", "2", "3"]),
        ("seed=range(0,10,5)", ["0", "5"]),
        ("optim.lr=range(0.5,2,0.5)", ["0.5", "1.0", "1.5"]),
        ("seed=choice(7,9)", ["7", "9"]),
        ("adapter=glob(m*)", ["modex", "mwa"]),
        ("adapter=glob(*,exclude=[m*,n*])", ["full", "head_only"]),
        ("optim.betas=[0.9,0.98],[0.9,0.999]", ["[0.9,0.98]", "[0.9,0.999]"]),
        ("name='a,b',c", ["'a,b'", "c"]),
        ("data.root='a, b'", ["'a, b'"]),
        ("training.ema_decay=null,0.999", ["null", "0.999"]),
    ],
)
def test_grid__values(word: str, values: list[str]) -> None:
    key = word.partition("=")[0]
    assert grid([word]) == [(f"{key}={value}",) for value in values]


def test_grid__of_a_key_given_twice_the_last_counts() -> None:
    assert grid(["seed=1,2", "seed=3"]) == [("seed=3",)]


@pytest.mark.parametrize("word", ["optim.lr=interval(0,1)", "adapter=glob(q*)", "seed=range(3,1)", "nonsense"])
def test_grid__refused(word: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(word)):
        grid([word])


def test_numbered__what_is_recorded_keeps_its_number() -> None:
    before = [Job(0, ("seed=1",)), Job(2, ("seed=2",), {"slurm": "7_1"})]
    jobs = numbered([("seed=2",), ("seed=3",), ("seed=1",)], before)
    assert jobs == [before[1], Job(3, ("seed=3",)), before[0]]


def test_multirun__shows_its_jobs(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["-m", "--cfg", "job", "seed=1,2", "adapter=mwa"]) == 0
    assert capsys.readouterr().out == "0: seed=1 adapter=mwa\n1: seed=2 adapter=mwa\n"
    assert list(elsewhere.iterdir()) == []


def test_multirun__what_is_given_twice_is_one_job(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "old").mkdir()
    (elsewhere / "old" / "multirun.yaml").write_text("jobs: {0: {overrides: [seed=1]}}")
    for folder in ([], ["run_dir=new"], ["run_dir=old"]):
        assert train.main(["-m", "--cfg", "job", "seed=1,2,1", *folder]) == 0
        assert capsys.readouterr().out == "0: seed=1\n1: seed=2\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("seed=range(1,3,0)", ["seed=range(1,3,0): the step of range(from, to, step) is 0"]),
        ("optim.lr=range(0.1,1,0)", ["optim.lr=range(0.1,1,0): the step of range(from, to, step) is 0"]),
        ("seed=range(3,3)", ["seed=range(3,3): names no value"]),
        ("optim.lr=1,2,3,-1", ["job 3 (optim.lr=-1)", "above 0"]),
        ("adapter=mwa,mwaa", ["job 1 (adapter=mwaa)", "Did you mean mwa?"]),
        ("adapter=mwa,none", ["job 1", "trains nothing"]),
        ("data.batch_size=8,1", ["job 1", "global batch of one"]),
        ("optim.lr=interval(0,1)", ["optim.lr=interval(0,1)", "mwa-tune"]),
        ("seed=1,2 launcher=slrum", ["launcher=slrum", "Did you mean slurm?"]),
        ("seed=1,2 launcher.jobs=0", ["launcher.jobs=0", "from 1 up"]),
        ("seed=1,2 launcher.gpus=[0] launcher.jobs=2", ["launcher.gpus=[0]", "launcher.jobs=2"]),
        ("seed=1,2 launcher=slurm trainer.devices=1,2", ["the same trainer.num_nodes, trainer.devices"]),
        ("seed=1,2 launcher=slurm trainer.devices=auto", ["trainer.devices=auto"]),
        ("seed=1,2 launcher=slurm +launcher.partitoin=a", ["launcher.partitoin", "Did you mean launcher.partition?"]),
        ("seed=1,2 run_dir=taken", ["run_dir=", "no multirun.yaml"]),
        ("run_dir=swep", ["run_dir=", "holds no sweep to resume"]),
    ],
)
def test_multirun__refused_before_anything_starts(
    line: str, words: list[str], elsewhere: Path, refuses: Callable[..., None]
) -> None:
    (elsewhere / "taken").mkdir()
    (elsewhere / "taken" / "letter.txt").touch()
    refuses("mwa-train", train.main, ["--multirun", *line.split()], words)
    assert [path.name for path in elsewhere.rglob("*")] == ["taken", "letter.txt"]


def test_multirun__other_settings_in_a_run_directory(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = elsewhere / "sweep"
    (folder / "1").mkdir(parents=True)
    (folder / "multirun.yaml").write_text("jobs:\n  0:\n    overrides: [seed=1]\n  1:\n    overrides: [seed=2]\n")
    (folder / "1" / "config.yaml").write_text("seed: 3\nmwa_lightning_version: 0.1.0\n")
    assert train.main(["-m", "seed=1,2", f"run_dir={folder}"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert not (folder / "0").exists()


def test_multirun__other_commands_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["-m", "seed=1,2"]) == 2
    assert "a flag of mwa-train alone" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_multirun__job_that_does_not_learn(tiny_run: list[str], tmp_path: Path) -> None:
    """It is stopped and named, with its reason in the table; the other job is carried out."""
    folder = tmp_path / "sweep"
    words = ["adapter.mid_dim=4", "adapter.enhancer=none", "optim.lr=1e-3", "optim.warmup_epochs=0"]
    words += ["trainer.max_epochs=10", "trainer.check_val_every_n_epoch=10", "training.collapsed=stop"]
    code, out, error = finished(start("-m", *tiny_run, *words, "adapter.scale=1e-45,0.6", f"run_dir={folder}"))
    assert code == 5
    assert error.splitlines()[-1].startswith("mwa-train: error: 1 of 2 jobs failed (0): see ")
    said = (
        "mwa-train: error: nothing trains in adapter: its gradients are zero since about step 0; set adapter.scale=0.6"
    )
    assert f"job 0 did not learn (exit code 5): {said}\n" in out
    assert re.search(r"^\| 0 \| 1e-45 \| did not learn \(exit code 5\), dead \|", out, re.MULTILINE)
    assert re.search(r"^\| 1 \| 0.6 \| through \|", out, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_multirun__one_fails_and_is_gone_on_with(scenes: Path, tmp_path: Path) -> None:
    """A picture of one job is broken; mended and started again, only that job is run."""
    broken = tmp_path / "broken"
    shutil.copytree(scenes, broken)
    picture = broken / "test" / "scene_test_000002.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:200])
    folder = tmp_path / "sweep"
    words = ["-m", *TINY, f"data.root={broken},{scenes}", "adapter=head_only,mwa", f"run_dir={folder}"]
    code, out, error = finished(start(*words, "launcher.jobs=2"))
    assert code == 2
    assert error.splitlines()[-1].startswith("mwa-train: error: 2 of 4 jobs failed (0, 1)")
    assert "scene_test_000002.jpg" in out
    assert "| 0 |  | failed (exit code 2) |" in out
    assert [words[-2:] for words in recorded(folder).values()] == [
        [f"data.root={root}", f"adapter={adapter}"] for root in (broken, scenes) for adapter in ("head_only", "mwa")
    ]
    assert [(folder / str(number) / "metrics.json").is_file() for number in range(4)] == [False, False, True, True]
    assert metrics(folder / "3")["params/trainable"] > metrics(folder / "2")["params/trainable"]

    picture.write_bytes(whole)
    before = (folder / "2" / "train.log").read_bytes()
    code, out, _ = finished(start("-m", f"run_dir={folder}", "launcher.jobs=2"))
    assert code == 0
    assert "2 through before" in out
    assert out.count(" | through | ") == 4
    assert (folder / "2" / "train.log").read_bytes() == before
    same = ("val/mean_recall", "test/mean_recall", "params/trainable")
    assert [metrics(folder / "0")[name] for name in same] == [metrics(folder / "2")[name] for name in same]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_multirun__killed_and_started_again(scenes: Path, tmp_path: Path) -> None:
    """What a killed sweep leaves running is waited for, not started a second time beside it."""
    folder = tmp_path / "sweep"
    words = ["-m", *TINY, f"data.root={scenes}", "adapter=head_only", "seed=1,2", f"run_dir={folder}"]
    first = start(*words)
    limit = time.monotonic() + 600
    while not (folder / "0.log").is_file() and time.monotonic() < limit:
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (folder / "0" / "metrics.json").exists()
    code, out, _ = finished(start(*words))
    assert code == 0
    assert "job 0 is running already" in out
    assert "job 0 started" not in out
    assert out.count(" | through | ") == 2
    assert (folder / "0" / "train.log").read_text().count("What trains") == 1


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_multirun__ctrl_c_stops_it_and_the_same_command_goes_on(scenes: Path, tmp_path: Path) -> None:
    """A terminal sends it to the sweep, to its two jobs and to the two processes of each."""
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32")
    words = ["-m", *two, *TINY[1:], "trainer.max_epochs=30", f"data.root={scenes}", "adapter=head_only", "seed=1,2,3"]
    folder = tmp_path / "sweep"
    process = start(*words, "launcher.jobs=2", f"run_dir={folder}", alone=True)
    logs = [folder / number / "train.log" for number in ("0", "1")]
    while not all(log.is_file() and "epoch 2: training" in log.read_text() for log in logs):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    code, out, error = finished(process)
    assert code == 130, error
    assert error == (
        "Ctrl-C: its jobs save and end, then the sweep; once more ends all at once\n"
        f"mwa-train: stopped by SIGINT; resume with run_dir={folder}\n"
    )
    assert out.count(" | not finished | ") == 2
    assert out.count(" | not started | ") == 1
    for number in ("0", "1"):
        said = (folder / f"{number}.log").read_text()
        assert "Traceback" not in said
        assert re.search(r"mwa-train: stopped by SIGINT after step \d+, which is saved; resume with run_dir=", said)
    code, out, error = finished(start("-m", f"run_dir={folder}", "launcher.jobs=3"))
    assert code == 0, error
    assert out.count(" | through | ") == 3
    assert [log.read_text().count("resuming from") for log in logs] == [1, 1]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_pain_2__two_ranks_two_trials(scenes: Path, elsewhere: Path) -> None:
    """Hydra, DDP and multirun together: both ranks of a job train its own trial, in one directory a job."""
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32")
    words = ["-m", *two, *TINY, "adapter=head_only", f"data.root={scenes}", "optim.lr=1e-3,1e-1"]
    code, _, error = finished(start(*words, "trainer.log_every_n_steps=1"))
    assert code == 0, error
    (folder,) = elsewhere.glob("logs/retrieval/head_only_beit3_tiny_scenes/*")
    assert folder.name.endswith("_multirun")
    directories = sorted(path.parent for path in elsewhere.rglob("config.yaml"))
    assert directories == [folder / "0", folder / "1"]
    rates = []
    for directory in directories:
        config = yaml.safe_load((directory / "config.yaml").read_text())
        assert config["trainer"]["devices"] == 2
        rates.append(config["optim"]["lr"])
        with (directory / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        # One table, written once: a second writer, or another trial's, would show as further rows.
        names = [(row["step"], row["name"]) for row in rows]
        assert len(names) == len(set(names))
        assert max(float(row["value"]) for row in rows if row["name"] == "lr") == pytest.approx(rates[-1])
        assert (directory / "train.log").read_text().count("What trains") == 1
    assert rates == [1e-3, 1e-1]
    weights = [(directory / "adapter.safetensors").read_bytes() for directory in directories]
    assert weights[0] != weights[1]


def test_multirun__signal_while_it_starts(scenes: Path, tmp_path: Path) -> None:
    """It leaves nothing of a sweep that has not begun."""
    program = (
        "import os, signal, sys; from mwa_lightning.cli import train; "
        "from mwa_lightning.cli.config import composing; compose = composing.compose_command; "
        "composing.compose_command = lambda *words: (os.kill(os.getpid(), signal.SIGTERM), compose(*words))[1]; "
        "sys.exit(train.main())"
    )
    words = ["-m", *TINY, f"data.root={scenes}", "seed=1,2"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    line = "mwa-train: stopped by SIGTERM before anything began; start the same command again\n"
    assert (done.returncode, done.stdout, done.stderr) == (75, "", line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_pain_5__each_trial_is_a_run_of_its_own_in_wandb(scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    words = ["-m", *TINY, f"data.root={scenes}", "adapter=head_only", "seed=1,2", "logger=wandb"]
    code, _, error = finished(start(*words, "logger.mode=offline", f"run_dir={folder}"))
    assert code == 0, error
    identities = [(folder / number / "wandb" / "id").read_text() for number in ("0", "1")]
    assert identities[0] != identities[1]
    for number, identity in zip(("0", "1"), identities, strict=True):
        (run,) = (folder / number / "wandb").glob("offline-run-*")
        assert run.name.endswith(identity)
