"""No command removes or replaces what it has not made, whatever it is called and however the command ends.

A folder of a person's files with names like ours is refused, or stays as it is beside what is made; what a person puts
into a folder while a command works there stays too.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mwa_lightning.cli import compare, evaluate, prepare, tune
from mwa_lightning.cli import train as training
from tests.commands import start_command
from tests.faults.files.test_data import spoil
from tests.faults.fork_server import Server

# Names of ours, of what our temporary files were once called, and of what people have.
NAMES = (
    "thesis.tex",
    ".notes.2024",
    ".config.yaml.123",
    ".lock.bak",
    ".0.0123456789abcdef",
    ".metrics.json.0123456789abcdef",
    ".owner-0123456789ab",
    "metrics.json",
    "metrics.csv",
    "train.log",
    "adapter.safetensors",
    "index.safetensors",
    "sha256.txt",
    "0.log",
    "chapters/1.tex",
    "checkpoints/last.ckpt",
    "checkpoints/.best.ckpt.7",
    "annotations/dataset.json",
    "wandb/id",
    "tensorboard/events.out.tfevents.1",
    ".submitit/0_0_log.out",
    "0/notes.txt",
)
# One each, which a command may take for its own record.
RECORDS = {
    "config.yaml": "my: own\n",
    "multirun.yaml": "my: own\n",
    "study.db": "no database",
    "scenes.json": "{}",
    "dataset_scenes.json.bak": "{}",
    ".lock": "somebody's",
}
State = dict[str, tuple[int, int, bytes]]


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A shell starts what runs in its background deaf to Ctrl-C, and what that starts inherits it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Starts all commands of this module."""
    server = Server()
    yield server
    server.close()


def fill(folder: Path, *records: str) -> Path:
    """A person's folder: files, hidden ones, modes, sub-folders, and links out of it."""
    outside = folder.with_name(f"{folder.name}_outside")
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"precious {name}")
    for name in records:
        (folder / name).write_text(RECORDS[name])
    (outside / "far").mkdir(parents=True)
    (outside / "far" / "file").write_text("precious")
    (folder / "link").symlink_to(outside / "far")
    (folder / ".link.1").symlink_to(outside / "far" / "file")
    (folder / "predictions.safetensors").symlink_to("nowhere")
    (folder / "empty").mkdir(mode=0o700)
    (folder / "thesis.tex").chmod(0o600)
    return folder


def state(folder: Path) -> State:
    """Mode, time and content of all that is there."""
    found = {}
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            there = path.lstat()
            if stat.S_ISDIR(there.st_mode):
                content, changed = b"", 0  # something of ours may lie beside
            else:
                content, changed = bytes(path.readlink()) if path.is_symlink() else path.read_bytes(), 1
            found[str(path.relative_to(folder))] = (there.st_mode, changed * there.st_mtime_ns, content)
    return found


@pytest.mark.parametrize("record", [None, *RECORDS])
def test_refused__every_command_and_nothing_is_touched(
    record: str | None,
    tiny_command: list[str],
    whole: Path,
    elsewhere: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As run, sweep, search, shard or data folder, and as a folder in the cache, in one line each."""
    folder = fill(elsewhere / "mine", *(() if record is None else (record,)))
    cached = fill(elsewhere / "cache" / "scenes-v4-target-800-100-200")
    monkeypatch.setenv("MWA_CACHE", str(elsewhere / "cache"))
    before = state(elsewhere)
    data = next(word for word in tiny_command if word.startswith("data.root=")).partition("=")[2]
    commands: list[tuple[Callable[[list[str]], int], list[str]]] = [
        (training.main, [*tiny_command, f"run_dir={folder}"]),
        (evaluate.main, [f"run={whole}", f"run_dir={folder}"]),
        (training.main, ["-m", *tiny_command, "seed=1,2", f"run_dir={folder}"]),
        (tune.main, [*tiny_command, "optim.lr=1e-3,1e-2", f"run_dir={folder}"]),
        (prepare.main, ["data=karpathy", f"data.root={data}", f"shards={folder}"]),
        (prepare.main, ["data=scenes", f"data.root={folder}"]),
        (prepare.main, ["data=scenes", "data.domain=target", f"data.root={cached}"]),
        (compare.main, [str(whole), f"output={folder / 'metrics.csv'}"]),
        (compare.main, [str(whole), f"output={folder / 'link' / 'file'}"]),
    ]
    for main, words in commands:
        assert main(words) == 2, words
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1, said
        assert state(elsewhere) == before, words


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["success", "mistake", signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_run__beside_and_around_a_persons_files(
    command: str,
    ending: str | signal.Signals,
    server: Server,
    tiny_command: list[str],
    whole: Path,
    tmp_path: Path,
) -> None:
    """In a new folder among them; what comes into it meanwhile stays as well."""
    mine = fill(tmp_path / "mine", *RECORDS)
    before, run, output = state(tmp_path), mine / "run", tmp_path / "output"
    data = next(Path(word.partition("=")[2]) for word in tiny_command if word.startswith("data.root="))
    words = [*tiny_command, "data.num_workers=1"] if command == "train" else [f"run={whole}", "data.eval_batch_size=1"]
    if ending == "mistake":
        bad = spoil(data, tmp_path / "bad") if command == "train" else spoil(data, tmp_path / "bad", "test_1.jpg")
        words.append(bad)
    server.start(command, [*words, "training.checkpoint_every_n_steps=null", f"run_dir={run}"], output)
    while not (run / "train.log").is_file():
        if server.ended():  # before anybody could put something there
            assert ending == "mistake", output.read_text()
            assert not run.exists()
            return
        time.sleep(0.001)
    put = fill(run / "figs", *RECORDS)
    (run / ".notes.2024").write_text("precious")
    inside = {**state(put), "notes": state(run)[".notes.2024"]}
    if isinstance(ending, signal.Signals):
        time.sleep(random.Random(0).uniform(0, 0.3))
        os.kill(server.process, ending)
    server.wait()
    assert {**state(put), "notes": state(run)[".notes.2024"]} == inside
    if ending == signal.SIGKILL:
        server.start(command, [*words, "training.checkpoint_every_n_steps=null", f"run_dir={run}"], output)
        assert server.wait() == 0, output.read_text()
        assert {**state(put), "notes": state(run)[".notes.2024"]} == inside
        assert not (run / ".lock").exists()
    now = state(tmp_path)
    assert {name: now.get(name) for name in before} == before


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("work", ["shards", "scenes"])
def test_prepare__beside_and_around_a_persons_files(work: str, ending: signal.Signals, tmp_path: Path) -> None:
    mine = fill(tmp_path / "mine", *RECORDS)
    root, folder = tmp_path / "noise", mine / "new"
    words = ["data=scenes", f"data.root={folder}"]
    if work == "shards":
        from tests.faults.files.test_shard_writing import noise

        words = ["data=karpathy", f"data.root={noise(root, count=3000)}", f"shards={folder}", "shard_size_mb=0.1"]
    before = state(mine)
    command = [Path(sys.executable).with_name("mwa-prepare"), *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not any(folder.glob(".5.*")):
            assert process.poll() is None
            time.sleep(0.0005)
        put = fill(folder / "figs", *RECORDS)
        inside = state(put)
        process.send_signal(ending)
    assert state(put) == inside
    if ending == signal.SIGKILL:
        assert prepare.main(words) == 2  # there is something in it that nobody knows to be ours
    else:
        assert sorted(path.name for path in folder.iterdir()) == ["figs", "figs_outside"]
    assert state(put) == inside
    now = state(mine)
    assert {name: now.get(name) for name in before} == before


@pytest.mark.slow
def test_full_disk__beside_a_persons_files(
    small_disk: Path, tiny_command: list[str], whole: Path, tmp_path: Path
) -> None:
    mine = fill(small_disk / "mine", *RECORDS)
    before = state(small_disk)
    data = next(word for word in tiny_command if word.startswith("data.root=")).partition("=")[2]
    room = os.statvfs(small_disk)
    for left in (0, 2, 8):
        (small_disk / "ballast").write_bytes(bytes(room.f_frsize * max(0, room.f_bavail - left)))
        for main, words in (
            (training.main, [*tiny_command, f"run_dir={mine / 'run'}"]),
            (evaluate.main, [f"run={whole}", "save_predictions=true", f"run_dir={mine / 'evaluation'}"]),
            (prepare.main, ["data=karpathy", f"data.root={data}", f"shards={mine / 'shards'}"]),
            (prepare.main, ["data=scenes", f"data.root={mine / 'scenes'}"]),
        ):
            main(words)
            now = state(small_disk)
            assert {name: now.get(name) for name in before} == before, words
        (small_disk / "ballast").unlink()
    assert training.main([*tiny_command, f"run_dir={mine / 'run'}"]) == 0
    now = state(small_disk)
    assert {name: now.get(name) for name in before} == before
    assert tmp_path.is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["success", signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("command", ["sweep", "search", "check", "compare"])
def test_further_commands__beside_and_around_a_persons_files(
    command: str, ending: str | signal.Signals, tiny_command: list[str], whole: Path, tmp_path: Path
) -> None:
    """Sweeps and searches with their folder among a person's files; what only reads, where there are such in it."""
    mine = fill(tmp_path / "mine", *RECORDS)
    folder, table = mine / "new", mine / "table.csv"
    root = next(Path(word.partition("=")[2]) for word in tiny_command if word.startswith("data.root="))
    data = shutil.copytree(root, tmp_path / "data")
    runs = shutil.copytree(whole, tmp_path / "runs" / "a").parent
    for place in (data, runs):
        fill(place / "figs", *RECORDS)
    words = {
        "sweep": ("train", "-m", *tiny_command, "seed=1,2", f"run_dir={folder}"),
        "search": ("tune", *tiny_command, "optim.lr=interval(1e-4,1e-2)", "tune.trials=2", f"run_dir={folder}"),
        "check": ("prepare", "data=karpathy", f"data.root={data}", "data.annotations=dataset.json", "check=true"),
        "compare": ("compare", str(runs), "format=csv", f"output={table}"),
    }[command]
    before = state(tmp_path)
    started = start_command(*words, alone=True)
    put = folder / "figs"
    if command in ("sweep", "search"):
        while not (folder / "0").is_dir():
            assert started.poll() is None, started.communicate()
            time.sleep(0.002)
        fill(put, *RECORDS)
        time.sleep(random.Random(0).uniform(0, 0.5))
    else:
        time.sleep(random.Random(0).uniform(0, 0.5))
    inside = state(put)
    if isinstance(ending, signal.Signals) and started.poll() is None:
        started.send_signal(ending)
    said = started.communicate(timeout=200)
    assert isinstance(ending, signal.Signals) or started.returncode == 0, said
    assert state(put) == inside
    now = state(tmp_path)
    assert {name: now.get(name) for name in before} == before
    new = {Path(name).parts[:2] for name in now.keys() - before.keys()}
    assert new <= {("mine", "new"), ("mine", "table.csv")}
