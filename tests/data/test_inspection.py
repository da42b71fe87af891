"""An inspection reports everything at once, and a sound data set as sound."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mwa_lightning.data.inspection import format_report, inspect

Write = Callable[..., Path]


def _config(root: Path) -> dict[str, Any]:
    return {"layout": "karpathy", "root": root, "batch_size": 4}


def test_inspect__sound(write_karpathy: Write) -> None:
    root = write_karpathy()
    report = inspect(_config(root))
    assert not report.fatal
    assert [(split.name, split.images, split.captions) for split in report.splits] == [
        ("train", 8, 16),
        ("val", 3, 6),
        ("test", 4, 8),
    ]
    annotations = hashlib.sha256((root / "dataset.json").read_bytes()).hexdigest()
    names = hashlib.sha256(b"008.png\n009.png\n010.png").hexdigest()
    assert report.annotations_sha256 == annotations
    assert report.splits[1].names_sha256 == names
    text = format_report(report)
    assert annotations in text
    assert f"val: 3 images, 6 captions, sha256 of names {names}" in text
    assert text.endswith("\nno problems")


@pytest.mark.parametrize("workers", [0, 2])
def test_inspect__everything_at_once(write_karpathy: Write, workers: int) -> None:
    def spoil(data: dict[str, Any]) -> None:
        data["images"][0]["sentences"][1]["raw"] = " "

    root = write_karpathy(splits={"train": 8, "test": 5}, change=spoil)
    pictures = root / "pictures"
    (pictures / "001.png").unlink()
    (pictures / "002.png").write_bytes(b"")
    (pictures / "003.png").write_bytes(b"no picture")
    (pictures / "004.png").write_bytes((pictures / "004.png").read_bytes()[:-100])
    shutil.copy(pictures / "005.png", pictures / "009.png")
    report = inspect(_config(root), workers=workers)
    assert report.fatal
    assert [problem.kind for problem in report.problems] == [
        "caption without words",
        "empty split",
        "missing image",
        "image of 0 bytes",
        "unreadable image",
        "unreadable image",
    ]
    assert report.shared_pictures == ["005.png (train) and 009.png (test)"]
    text = format_report(report, most=1)
    for part in ("001.png", "002.png", "003.png", "and 1 more", "6 problems", "005.png (train) and 009.png (test)"):
        assert part in text
    assert "004.png" not in text
    assert "004.png" in format_report(report)


def test_inspect__same_picture_in_two_splits_is_not_fatal(write_karpathy: Write) -> None:
    root = write_karpathy()
    shutil.copy(root / "pictures" / "000.png", root / "pictures" / "014.png")
    shutil.copy(root / "pictures" / "001.png", root / "pictures" / "002.png")  # within one split: nothing to say
    report = inspect(_config(root))
    assert not report.fatal
    assert report.shared_pictures == ["000.png (train) and 014.png (test)"]


def test_inspect__nothing_there(tmp_path: Path) -> None:
    report = inspect(_config(tmp_path / "none"))
    assert report.fatal
    assert "does not exist" in format_report(report)


def test_inspect__damaged_annotations(write_karpathy: Write) -> None:
    root = write_karpathy()
    (root / "dataset.json").write_text('{"images": [')
    report = inspect(_config(root))
    assert [problem.kind for problem in report.problems] == ["not JSON"] + ["empty split"] * 3
