"""A pipe, a device or a socket where a file should be is one line at once, of every command and in Python."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import mwa_lightning
from mwa_lightning.cli import evaluate, prepare, train
from mwa_lightning.errors import UserError

Made = Callable[[Path], object]

pytestmark = pytest.mark.timeout(60)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.path.relpath(path))  # which may be no longer than 107 bytes


KINDS: dict[str, Made] = {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "socket": _socket}


@pytest.fixture(params=KINDS)
def no_file(request: pytest.FixtureRequest, elsewhere: Path) -> Made:
    """Puts something else in the place of a file; all of it happens in an empty folder."""

    def make(path: Path) -> None:
        path.unlink(missing_ok=True)
        KINDS[request.param](path)

    return make


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A table of eight pictures, two of them to evaluate on."""
    root = tmp_path / "pairs"
    root.mkdir()
    rows = ["image,caption,split"]
    for number in range(8):
        Image.new("RGB", (16, 16), (30 * number, 0, 0)).save(root / f"{number}.png")
        rows.append(f"{number}.png,picture number {number},{('train', 'val', 'test')[max(0, number - 5)]}")
    (root / "pairs.csv").write_text("\n".join(rows) + "\n")
    return root


def _one_line(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    line = said.splitlines()[-1]
    assert all(word in line for word in words), said


@pytest.mark.parametrize("name", ["2.png", "6.png"])
def test_picture(pairs: Path, no_file: Made, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    no_file(pairs / name)
    data = ["data=pairs", f"data.root={pairs}", "data.num_workers=0"]
    assert prepare.main([*data, "check=true"]) == 2
    captured = capsys.readouterr()
    assert f"unreadable image: 1\n  image {pairs / name} cannot be read (it is a " in captured.out
    assert prepare.main([*data, "shards=shards"]) == 2
    _one_line(capsys, str(pairs / name), "(it is a ", "not a file")
    assert train.main([*data, "data.batch_size=2", "run_dir=run"]) == 2
    _one_line(capsys, str(pairs / name), "(it is a ", "not a file")
    assert not Path("run").exists()


@pytest.mark.parametrize("given", [[], ["data.annotations=pairs.csv"]])
def test_annotations(pairs: Path, no_file: Made, given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    no_file(pairs / "pairs.csv")
    for main, arguments in ((prepare.main, ["check=true"]), (prepare.main, ["shards=shards"]), (train.main, [])):
        assert main(["data=pairs", f"data.root={pairs}", *given, *arguments]) == 2
        captured = capsys.readouterr()
        assert str(pairs) in captured.out + captured.err


@pytest.mark.parametrize("key", ["backbone.checkpoint", "backbone.tokenizer", "adapter.checkpoint"])
def test_weights(
    key: str, tiny_run: list[str], tmp_path: Path, no_file: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    no_file(tmp_path / "weights.safetensors")
    assert train.main([*tiny_run, f"{key}={tmp_path}/weights.safetensors", "run_dir=run"]) == 2
    _one_line(capsys, f"{key}={tmp_path}/weights.safetensors: it is a ", "not a file")


def test_run(no_file: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    no_file(tmp_path / "config.yaml")
    assert evaluate.main([f"run={tmp_path}"]) == 2
    _one_line(capsys, f"{tmp_path}/config.yaml cannot be read (it is a ")


@pytest.mark.parametrize("argument", ["checkpoint", "adapter", "tokenizer"])
def test_load(argument: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.safetensors")
    with pytest.raises(UserError) as caught:
        mwa_lightning.load("beit3_tiny", **{argument: tmp_path / "weights.safetensors"})
    assert str(tmp_path / "weights.safetensors") in str(caught.value)
