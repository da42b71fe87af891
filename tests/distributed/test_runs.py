"""Whole runs of two processes over gloo: this process is the first, the second is started as it is for users."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from mwa_lightning.cli import evaluate
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.loading.sampling import GlobalBatchSampler
from mwa_lightning.data.scenes.writing import write_scenes
from mwa_lightning.data.sources import find_source
from mwa_lightning.training.callbacks.run_keeper import RunKeeper
from tests.distributed.conftest import COMMON, TWO, stop_after_first_save

Train = Callable[..., int]

FILES = {
    "adapter.safetensors",
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
    "checkpoints/sha256.txt",
    "config.yaml",
    "metrics.csv",
    "metrics.json",
    "provenance.json",
    "train.log",
}


def figures(directory: Path, prefix: str) -> dict[str, float]:
    metrics = json.loads((directory / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if name.startswith(prefix)}


def losses(directory: Path) -> list[float]:
    with (directory / "metrics.csv").open() as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "train/loss"]


def assert_weights_equal(first: Path, second: Path) -> None:
    """Relative and per tensor."""
    ours, reference = (load_file(directory / "adapter.safetensors") for directory in (first, second))
    assert ours.keys() == reference.keys()
    errors = {name: ((ours[name] - value).norm() / value.norm()).item() for name, value in reference.items()}
    assert max(errors.values()) <= 1e-5, sorted(errors.items(), key=lambda pair: pair[1])[-3:]


def test_train__names_with_letters_that_the_terminal_does_not_have(
    train_two: Train, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process has the same configuration all the same: it would make another data set, and wait for ever."""
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    root = shutil.copytree(scenes, tmp_path / "grün")
    assert train_two(f"run_dir='{tmp_path / 'Lauf für zwei'}'", root=f"'{root}'") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Lauf für zwei", "grün"]


def test_train__two_processes_are_as_one(
    train_two: Train, train_one: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    import mwa_lightning.data.text.subwords  # noqa: F401 (its import sets a variable of the tokenizers, for all processes)

    options = ("adapter.dropout=0", "adapter.scale=1", "save_predictions=true")
    environment = dict(os.environ)
    assert train_two(*options, f"run_dir={two}", "training.zero_shot=true") == 0
    assert not distributed.is_initialized()
    assert dict(os.environ) == environment

    captured = capfd.readouterr()
    for line in ("run directory", "What trains", "zero-shot evaluation", "epoch 1 of", "Retrieval on the test split"):
        assert captured.out.count(line) == 1 + (line == "run directory"), line
    assert "rank" not in (captured.out + captured.err).replace("1 thread per rank", "")
    left = {path.relative_to(two).as_posix() for path in two.rglob("*") if path.is_file()}
    assert left == FILES | {"predictions.safetensors"}
    assert (two / "train.log").read_text().count("What trains") == 1

    assert train_one(*options, f"run_dir={one}", "training.zero_shot=true") == 0
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert len(losses(two)) == 4
    assert_weights_equal(two, one)
    assert figures(two, "zero_shot/") == figures(one, "zero_shot/")

    assert evaluate.main([f"run={two}", "trainer=cpu", f"run_dir={tmp_path / 'again'}"]) == 0
    assert figures(tmp_path / "again", "test/") == figures(two, "test/")
    ours, reference = (load_file(run / "predictions.safetensors") for run in (two, tmp_path / "again"))
    for name, tensor in reference.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "head_only"])
def test_train__other_methods(method: str, train_two: Train, train_one: Train, tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    assert train_two(f"experiment=scenes_{method}", f"run_dir={two}") == 0
    assert train_one(f"experiment=scenes_{method}", f"run_dir={one}") == 0
    assert_weights_equal(two, one)


@pytest.mark.slow
def test_train__two_processes_in_bfloat16(train_two: Train, train_one: Train, tmp_path: Path) -> None:
    """As one process, but for the rounding; what trains stays float32, and so do its gradients on their way."""
    runs = {name: tmp_path / name for name in ("two", "one", "whole")}
    options = ("adapter.dropout=0", "adapter.scale=1")
    assert train_two(*options, "trainer.precision=bf16-mixed", f"run_dir={runs['two']}") == 0
    assert train_one(*options, "trainer.precision=bf16-mixed", f"run_dir={runs['one']}") == 0
    assert train_one(*options, f"run_dir={runs['whole']}") == 0
    two, one, whole = (losses(run) for run in runs.values())
    # Kernels of CPUs with bfloat16 round a half of a batch otherwise than the whole.
    assert two[0] == pytest.approx(one[0], rel=1e-3)
    assert two == pytest.approx(one, rel=4e-3)
    assert two[0] != pytest.approx(whole[0], rel=1e-4)
    assert {tensor.dtype for tensor in load_file(runs["two"] / "adapter.safetensors").values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_pain_17__several_processes_evaluate_no_sample_twice(processes: int, train_one: Train, tmp_path: Path) -> None:
    """Nine images and 45 captions, of which two processes cannot have the same number."""
    run = tmp_path / "run"
    assert train_one(f"run_dir={run}", "save_predictions=true") == 0
    several = ("trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={processes}", "trainer.precision=32")
    assert evaluate.main([f"run={run}", *several, f"run_dir={tmp_path / 'again'}"]) == 0
    assert figures(tmp_path / "again", "test/") == figures(run, "test/")
    ours, reference = (load_file(each / "predictions.safetensors") for each in (tmp_path / "again", run))
    for name, tensor in reference.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_train__killed_and_started_again(
    processes: int, train_two: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes as a run that nothing happened to, dropout included."""
    options = (f"trainer.devices={processes}", "training.checkpoint_every_n_steps=2", "data.num_workers=0")
    assert train_two(*options, f"run_dir={tmp_path / 'whole'}") == 0
    stop_after_first_save(lambda: train_two(*options, f"run_dir={tmp_path / 'killed'}"), monkeypatch)
    assert not (tmp_path / "killed" / "adapter.safetensors").exists()
    # Other than before, and other than in the config.yaml of the first start: all processes have to learn of it.
    again = (f"trainer.devices={processes}", "training.checkpoint_every_n_steps=1")
    assert train_two(*again, f"run_dir={tmp_path / 'killed'}") == 0
    weights = [(tmp_path / run / "adapter.safetensors").read_bytes() for run in ("whole", "killed")]
    assert weights[0] == weights[1]
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


@pytest.mark.slow
def test_train__signal_to_one_rank_stops_all_at_one_step(
    train_two: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ("data.num_workers=0", f"run_dir={tmp_path / 'run'}")
    start = RunKeeper.on_train_start

    def signalling(self: RunKeeper, trainer: Any, pl_module: Any) -> None:
        (worker,) = trainer.strategy._processes.workers
        worker.send_signal(signal.SIGTERM)
        start(self, trainer, pl_module)

    with monkeypatch.context() as patch:
        patch.setattr(RunKeeper, "on_train_start", signalling)
        assert train_two(*options) == 75
    assert capfd.readouterr().err.startswith("mwa-train: stopped by another rank's signal after step ")
    assert train_two(*options) == 0
    assert train_two("data.num_workers=0", f"run_dir={tmp_path / 'whole'}") == 0
    weights = [(tmp_path / run / "adapter.safetensors").read_bytes() for run in ("whole", "run")]
    assert weights[0] == weights[1]
    assert losses(tmp_path / "whole") == losses(tmp_path / "run")


def break_picture(scenes: Path, root: Path, rank: int) -> Path:
    """A copy of the data in `root` in which a picture that only this rank of two meets cannot be decoded."""
    shutil.copytree(scenes, root)
    split = find_source(layout="scenes", root=root).read(Problems())["train"]
    sampler = GlobalBatchSampler(length=len(split.captions), batch_size=16, seed=42)
    owners = [[split.captions[int(place)].image_index for place in batch] for batch in sampler.global_batches(0)]
    halves = [[set(owner[:8]), set(owner[8:])] for owner in owners]
    # Met by the rank in the first or the second step, and not by the other up to then.
    own = halves[0][rank] - halves[0][1 - rank] or halves[1][rank] - halves[1][1 - rank] - halves[0][1 - rank]
    picture = Path(split.pictures[min(own)].path)
    picture.write_bytes(picture.read_bytes()[:200])
    return picture


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_train__failure_of_one_ends_all(
    rank: int, train_two: Train, scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "scenes"
    picture = break_picture(scenes, root, rank)
    assert train_two(f"run_dir={tmp_path / 'run'}", root=root) == 2
    error = capfd.readouterr().err
    assert picture.name in error
    assert "Traceback" not in error
    if rank == 1:
        assert error.startswith("rank 1: error: ")
        assert "mwa-train: error: rank 1 ended with exit code 2" in error
    else:
        assert error.startswith("mwa-train: error: ")
        assert error.count("\n") == 1
    assert not distributed.is_initialized()
    assert not (tmp_path / "run").exists()


WORDS_OF_TWO = (
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "trainer.precision=32",
    "data.batch_size=8",
    "trainer.max_steps=2",
    "optim.warmup_epochs=0",
)


def torchrun(folder: Path, *options: str, words: tuple[str, ...]) -> list[str]:
    """The command of one machine."""
    (folder / "start.py").write_text("import sys\nfrom mwa_lightning.cli.train import main\nsys.exit(main())\n")
    return [sys.executable, "-m", "torch.distributed.run", *options, "start.py", *WORDS_OF_TWO, *words]


@pytest.mark.slow
def test_train__nobody_outlives_the_first_process(scenes: Path, tmp_path: Path) -> None:
    """SIGKILL; the next start would find cards and files taken."""
    run, output = tmp_path / "run", tmp_path / "output.txt"
    words = [*TWO, *COMMON, f"data.root={scenes}", "training.zero_shot=false", "trainer.max_steps=1000"]
    with output.open("w") as file:
        command = [sys.executable, "-m", "mwa_lightning.cli.train", *words, f"run_dir={run}"]
        first = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    table = run / "metrics.csv"
    while first.poll() is None and not (table.is_file() and "\n3," in table.read_text()):
        time.sleep(0.05)
    first.kill()
    assert first.wait() == -signal.SIGKILL, output.read_text()
    end = time.monotonic() + 60
    while left := subprocess.run(["pgrep", "--session", str(first.pid)], capture_output=True, check=False).stdout:
        assert time.monotonic() < end, left
        time.sleep(0.2)
    assert output.read_text().count("rank 1: ") == 1
    assert output.read_text().endswith("rank 1: error: the first process of the run was killed\n")


@pytest.mark.slow
def test_train__by_torchrun(scenes: Path, elsewhere: Path) -> None:
    """Each process composes for itself; the directory, named after the time, is the first one's."""
    command = torchrun(elsewhere, "--nproc-per-node=2", words=("trainer.devices=2", f"data.root={scenes}"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Retrieval on the test split") == 1
    (left,) = elsewhere.glob("logs/retrieval/scenes_mwa/*/metrics.json")
    assert {path.relative_to(left.parent).as_posix() for path in left.parent.rglob("*") if path.is_file()} == FILES


@pytest.mark.slow
def test_train__by_torchrun_without_a_card(scenes: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = ("trainer.devices=2", "trainer.accelerator=gpu", f"data.root={scenes}")
    command = torchrun(elsewhere, "--nproc-per-node=2", words=words)
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode != 0
    assert "error: trainer.accelerator=gpu: no GPU was found here; take trainer.accelerator=cpu\n" in done.stderr
    assert "a defect of mwa_lightning" not in done.stderr
    assert not (elsewhere / "logs").exists()


def on_two_machines(folder: Path, *words: str, second: tuple[str, ...] = ()) -> list[tuple[int, str, str]]:
    """What the torchruns of two machines of one process each, here both on this one, return and print.

    `second` is a command that starts another one, here the second machine's.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ("--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}")
    words = ("trainer.devices=1", "trainer.num_nodes=2", *words)
    running = [
        subprocess.Popen(
            [*(second if rank else ()), *torchrun(folder, *meeting, f"--node-rank={rank}", words=words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [each.communicate(timeout=250) for each in running]
    finally:
        for each in running:
            each.kill()
    return [(each.returncode, *said) for each, said in zip(running, printed, strict=True)]


@pytest.mark.slow
def test_train__by_torchrun_on_two_machines(train_two: Train, scenes: Path, elsewhere: Path) -> None:
    """The bytes of two processes on one."""
    first, second = on_two_machines(elsewhere, f"data.root={scenes}")
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert first[1].count("Retrieval on the test split") == 1
    assert second[1] == ""
    (left,) = elsewhere.glob("logs/retrieval/scenes_mwa/*/metrics.json")
    assert {path.relative_to(left.parent).as_posix() for path in left.parent.rglob("*") if path.is_file()} == FILES
    one = elsewhere / "one"
    assert train_two("optim.eps=1e-8", "trainer.max_steps=2", f"run_dir={one}") == 0
    assert (left.parent / "adapter.safetensors").read_bytes() == (one / "adapter.safetensors").read_bytes()


@pytest.mark.slow
def test_train__old_copy_of_the_data_on_one_machine(scenes: Path, elsewhere: Path) -> None:
    """With other numbers of samples, the processes would wait for each other for ever."""
    data, old = elsewhere / "data", elsewhere / "old"
    shutil.copytree(scenes, data)
    write_scenes(old, domain="target", seed=3, train=41, val=5, test=9)
    there = 'mount --bind "$0" "$1" && exec "${@:2}"'
    mounted = ("unshare", "--user", "--map-root-user", "--mount", "bash", "-c", there, str(old), str(data))
    if subprocess.run([*mounted, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no folder can be mounted over another one here: the kernel does not let `unshare` have its way")
    first, second = on_two_machines(elsewhere, f"data.root={data}", second=mounted)
    assert first[0] != 0
    assert second[0] != 0
    file = data / "dataset_scenes.json"
    assert f"mwa-train: error: {file} is not the same for all ranks: rank 1 on " in first[2]
    assert not (elsewhere / "logs").exists()


@pytest.mark.slow
def test_train__failure_on_one_machine_of_torchrun_ends_both(scenes: Path, elsewhere: Path) -> None:
    picture = break_picture(scenes, elsewhere / "broken", 1)
    first, second = on_two_machines(elsewhere, f"data.root={elsewhere / 'broken'}")
    assert first[0] != 0
    assert second[0] != 0
    (line,) = [line for line in second[2].splitlines() if line.startswith("rank 1: ")]
    assert line.startswith("rank 1: error: ")
    assert picture.name in line
    (line,) = [line for line in first[2].splitlines() if line.startswith("mwa-train: ")]
    assert line.startswith("mwa-train: error: another process of the run is gone")
