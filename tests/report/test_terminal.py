from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mwa_lightning.errors import StorageError
from mwa_lightning.report.terminal import deliver, say


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "i→t größe \\udcff\n".encode()),
        ("latin-1", b"i\\u2192t gr\xf6\xdfe \\udcff\n"),
        ("ascii", b"i\\u2192t gr\\xf6\\xdfe \\udcff\n"),
    ],
)
def test_say__letters_that_are_not_there(encoding: str, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    say("i→t größe \udcff")
    assert sys.stdout.buffer.getvalue() == expected  # type: ignore[attr-defined]


def test_say__to_a_reader_that_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of somebody else's, whose streams are not ours to replace."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    say("a line")
    deliver("a table")


def test_deliver__to_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True))
    say("a line")
    with pytest.raises(StorageError, match=r"the standard output cannot be written \(No space left on device\): make"):
        deliver("a table")


# Its first file would take the number of a closed stream, and what is printed would come into it.
WRITES = """
import sys
from mwa_lightning.errors import StorageError
from mwa_lightning.report.terminal import complain, deliver, open_streams, say
open_streams()
with open(sys.argv[1], "w") as file:
    say("said")
    complain("complained")
    print("printed", file=sys.stdout)
    print("printed", file=sys.stderr, flush=True)
    assert sys.stdin.read() == "" and not sys.stdout.isatty()
    try:
        deliver("a table")
    except StorageError as error:
        file.write(type(error.__cause__).__name__)
    file.write("written")
"""


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        ("", "written"),
        (">&-", "written"),
        ("2>&-", "written"),
        (">&- 2>&- <&-", "written"),
        ("2>/dev/full", "written"),
        (">/dev/full 2>/dev/full", "OSErrorwritten"),
        ("2>&1 | sleep 0", "written"),
    ],
)
def test_open_streams__whatever_they_are(streams: str, expected: str, buffered: bool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    shell = f'set -o pipefail; "$@" {"" if "<" in streams else "</dev/null"} {streams}'
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment |= {} if buffered else {"PYTHONUNBUFFERED": "1"}
    command = ["bash", "-c", shell, "bash", sys.executable, "-c", WRITES, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, path.read_text()) == (0, expected)
    if not streams:
        assert (done.stdout, done.stderr) == ("said\nprinted\na table\n", "complained\nprinted\n")
