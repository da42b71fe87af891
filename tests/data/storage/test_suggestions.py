"""A picture that is there under another spelling is named, with what to do; what is not there is not made up."""

from __future__ import annotations

import itertools
import unicodedata
from pathlib import Path

import pytest

from mwa_lightning.data.storage import suggestions
from mwa_lightning.data.storage.suggestions import picture_meant


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process of its own."""
    monkeypatch.setattr(suggestions, "_looks", itertools.count())
    suggestions._names.cache_clear()
    suggestions._folders.cache_clear()


@pytest.mark.parametrize(
    ("there", "path", "images", "says"),
    [
        ("images/1.jpg", r"images\1.jpg", "", "images/1.jpg: write / in place of \\ in the annotations"),
        ("a/b/1.jpg", r"C:\data\a\b\1.jpg", "",
         "a/b/1.jpg: cut C:\\data\\ off the paths in the annotations, and write / in place of"),
        ("IMG_1.JPG", "img_1.jpg", "", "IMG_1.JPG: write it so in the annotations"),
        ("Images/1.jpg", "images/1.jpg", "", "Images/1.jpg: write it so in the annotations"),
        ("1.jpg", "1", "", "1.jpg: add its suffix in the annotations"),
        ("1.png", "1.jpg", "", "1.png: write it so in the annotations"),
        ("a b.jpg", "a%20b.jpg", "", "a b.jpg: decode the %-codes in the annotations"),
        (unicodedata.normalize("NFC", "é.jpg"), unicodedata.normalize("NFD", "é.jpg"), "",
         ": its accents are encoded in another way"),
        ("images/1.jpg", "images/1.jpg", "annotations", ": set data.images=."),
        ("Images/1.jpg", "1.jpg", "", ": set data.images=Images"),
        ("images/1.jpg", "images/1.jpg", "images", ": set data.images=."),
        ("my images, all/1.jpg", "1.jpg", "", ": set \"data.images='my images, all'\""),
        ("images/1.jpg", "/home/other/set/images/1.jpg", "", "1.jpg: cut /home/other/set/ off the paths"),
    ],
)  # fmt: skip
def test_picture_meant(tmp_path: Path, there: str, path: str, images: str, says: str) -> None:
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).touch()
    folder = tmp_path / images
    folder.mkdir(exist_ok=True)
    meant = picture_meant(str(folder / path), folder, tmp_path)
    assert meant is not None
    assert says in meant
    assert "\n" not in meant


def test_picture_meant__nothing_near(tmp_path: Path) -> None:
    (tmp_path / "2.jpg").touch()
    for path in ("1.jpg", "a/b/c.jpg", "..", "/", "x" * 5000, "a\0b", "../../../../1.jpg"):
        assert picture_meant(f"{tmp_path}/{path}", tmp_path, None) is None


def test_picture_meant__is_given_up_after_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.JPG").touch()
    monkeypatch.setattr(suggestions, "_MOST", 2)
    path = str(tmp_path / "a.jpg")
    assert [picture_meant(path, tmp_path, None) is not None for _ in range(3)] == [True, True, False]
