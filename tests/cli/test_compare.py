"""`mwa-compare`, on folders as runs leave them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mwa_lightning.cli import compare


@pytest.fixture
def runs(elsewhere: Path) -> Path:
    for number, (lr, value) in enumerate([(0.1, 40.0), (0.2, 60.0)]):
        run = elsewhere / "runs" / str(number)
        run.mkdir(parents=True)
        config = {"split": "test", "training": {"monitor": "val/accuracy"}, "optim": {"lr": lr}}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        metrics = {"val/accuracy": value, "test/accuracy": value + 1 / 3, "time/fit_s": 5.0}
        (run / "metrics.json").write_text(json.dumps(metrics))
    return elsewhere / "runs"


def test_compare__markdown_to_the_terminal(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(runs)]) == 0
    assert capsys.readouterr().out == (
        "| run | optim.lr | state | val/accuracy | test/accuracy | time/fit_s |\n"
        "|---|---|---|---|---|---|\n"
        "| 1 | 0.2 | through | 60.00 | 60.33 | 5.00 |\n"
        "| 0 | 0.1 | through | 40.00 | 40.33 | 5.00 |\n"
    )


def test_compare__exact_csv_to_a_file(runs: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["runs", "figures=[test/accuracy]", "format=csv", "output=table.csv"]) == 0
    assert capsys.readouterr().out == ""
    assert (elsewhere / "table.csv").read_text() == (
        f"run,optim.lr,state,test/accuracy\n1,0.2,through,{60 + 1 / 3!r}\n0,0.1,through,{40 + 1 / 3!r}\n"
    )


def test_compare__output_that_is_a_link_or_a_pipe_stays_one(
    runs: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "link").symlink_to("table.md")
    assert compare.main(["runs", "output=link"]) == 0
    assert (elsewhere / "link").is_symlink()
    text = (elsewhere / "table.md").read_text()
    assert "| 1 | 0.2 |" in text
    assert compare.main(["runs", "output=link", "format=csv"]) == 2
    assert "/link: is there already; remove it, or give another file" in capsys.readouterr().err
    assert (elsewhere / "table.md").read_text() == text
    (elsewhere / "empty").touch(mode=0o600)
    assert compare.main(["runs", "output=empty"]) == 0
    assert (elsewhere / "empty").read_text() == text
    os.mkfifo(elsewhere / "pipe")
    reader = os.open(elsewhere / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert compare.main(["runs", "output=pipe"]) == 0
    assert (elsewhere / "pipe").is_fifo()
    assert os.read(reader, 10_000).decode() == text
    os.close(reader)


def test_compare__terminal_without_the_letters_and_a_reader_that_leaves(runs: Path) -> None:
    (runs / "1").rename(runs / os.fsdecode(b"gr\xc3\xb6\xc3\x9fe \xff"))
    command = [sys.executable, "-m", "mwa_lightning.cli.compare", "runs"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, cwd=runs.parent, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"| gr\\xf6\\xdfe \\udcff | 0.2 | through |" in done.stdout
    left = subprocess.run(
        ["sh", "-c", '"$@" | true', "sh", *command], capture_output=True, cwd=runs.parent, check=False
    )
    assert left.stderr == b""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", ["one or more folders"]),
        ("gone", ["gone", "no such folder"]),
        ("runs figures=[val/acuracy]", ["val/acuracy", "val/accuracy"]),
        ("runs sort=val/acuracy", ["val/acuracy", "val/accuracy"]),
        ("runs figures=val/accuracy", ["figures=val/accuracy", "want null or a list of metrics"]),
        ("runs format=html", ["format=html", "markdown, csv"]),
        ("runs output=gone/table.csv", ["output=", "there is no folder"]),
        ("runs output=runs", ["output=", "/runs: cannot be written (Is a directory); give another file"]),
        ("runs output=/proc/1/table.csv", ["output=/proc/1/table.csv: cannot be written (", "; give another file"]),
        ("runs sortt=x", ["Did you mean sort?"]),
    ],
)
def test_compare__mistakes(runs: Path, line: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mwa-compare: error: ")
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err
