"""What a holder leaves word of, what it clears away of a killed one, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mwa_lightning.made import start_token
from mwa_lightning.system.file_locks import LOCK, Held, lock, others_in

TOKEN = "0123456789abcdef"
FOREIGN = ["", "dear", "{}", '{"token": 3}', '{"token": "../../x"}', '{"token": "*"}', "[" * 5000, "\xff\x00"]


def held(folder: Path) -> Held:
    held = lock(folder / LOCK)
    held.begin(folder)
    return held


def test_begin__clears_away_what_a_killed_holder_left_and_nothing_else(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.write_text("dear")
    (folder / LOCK).write_text(json.dumps({"pid": 3, "token": TOKEN}))
    (folder / f".config.yaml.{TOKEN}").touch()
    (folder / ".notes.2024").touch()
    (folder / f".config.yaml.{TOKEN[::-1]}").touch()
    (folder / f".link.{TOKEN}").symlink_to(elsewhere)
    (folder / f".folder.{TOKEN}").mkdir()
    kept = [f".config.yaml.{TOKEN[::-1]}", f".folder.{TOKEN}", f".link.{TOKEN}", ".notes.2024"]
    assert sorted(path.name for path in others_in(folder)) == sorted(kept)
    held(folder).release()
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)
    assert elsewhere.read_text() == "dear"


def test_begin__leaves_word(tmp_path: Path) -> None:
    mine = lock(tmp_path / LOCK)
    mine.begin(tmp_path, pid=3)
    assert json.loads((tmp_path / LOCK).read_text()) == {"pid": 3, "token": start_token()}
    assert others_in(tmp_path) == []
    mine.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", FOREIGN)
def test_lock__somebody_elses_file_of_that_name_stays_as_it_is(content: str, tmp_path: Path) -> None:
    path = tmp_path / LOCK
    path.write_text(content, encoding="latin-1")
    (tmp_path / ".notes.2024").touch()
    before = path.read_bytes(), path.stat().st_mtime_ns
    held(tmp_path).release()
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, ".notes.2024"]
    assert (path in others_in(tmp_path)) == (content != "")


def test_lock__a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / LOCK).symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        lock(tmp_path / LOCK)
    assert (tmp_path / LOCK).readlink() == tmp_path / "gone"
