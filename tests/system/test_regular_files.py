"""Files and links to them are opened; what would never end, or never begin, is named at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mwa_lightning.system.regular_files import NotAFile, open_file, read_file, require_file
from mwa_lightning.system.whole_files import file_sha256


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.path.relpath(path))  # the name of one may be no longer than 107 bytes


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a named pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": _socket,
}


@pytest.mark.parametrize("what", NO_FILES)
@pytest.mark.parametrize("use", [open_file, read_file, require_file, file_sha256])
def test_no_file(what: str, use: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    NO_FILES[what](tmp_path / "a.jpg")
    (tmp_path / "link").symlink_to("a.jpg")
    for path in (tmp_path / "a.jpg", tmp_path / "link"):
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(NotAFile) as caught:
            use(path)
        assert (caught.value.strerror, caught.value.filename) == (f"it is {what}, not a file", str(path))
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_files_and_links(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"content")
    (tmp_path / "link").symlink_to("a.jpg")
    for path in (tmp_path / "a.jpg", tmp_path / "link"):
        assert read_file(path) == b"content"
        require_file(path)


@pytest.mark.parametrize("name", ["none", "a\0b", "\ud800", "n" * 300, "loop", "broken", "."])
def test_the_system_s_own_errors_stay(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "broken").symlink_to("nowhere")
    with pytest.raises(OSError, match=r".") as caught:
        read_file(f"{tmp_path}/{name}")
    assert not isinstance(caught.value, NotAFile)
    assert caught.value.strerror
