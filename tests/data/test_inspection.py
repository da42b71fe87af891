"""An inspection reports everything at once, and a sound data set as sound."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from PIL import Image

from mwa_lightning.data import sources
from mwa_lightning.data.inspection import format_report, inspect
from mwa_lightning.data.scenes.writing import write_scenes_nlvr2
from mwa_lightning.data.storage.stores import PictureFolder
from mwa_lightning.errors import DataError

Write = Callable[..., Path]


def _config(root: Path) -> dict[str, Any]:
    return {"layout": "karpathy", "root": root, "batch_size": 4}


def test_inspect__sound(write_karpathy: Write) -> None:
    root = write_karpathy()
    report = inspect(_config(root))
    assert not report.fatal
    assert [(split.name, split.images, split.samples) for split in report.splits] == [
        ("train", 8, 16),
        ("val", 3, 6),
        ("test", 4, 8),
    ]
    annotations = hashlib.sha256((root / "dataset.json").read_bytes()).hexdigest()
    names = hashlib.sha256(b"008.png\n009.png\n010.png").hexdigest()
    assert report.annotations == {root / "dataset.json": annotations}
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
        "missing image",
        "image of 0 bytes",
        "unreadable image",
        "unreadable image",
    ]
    assert report.shared_pictures == ["005.png (train) and 009.png (test)"]
    assert report.notes == [
        "no val split: mwa-train needs one: data.val_share=0.05 makes one of 5 % of train, by a hash of the images"
    ]
    text = format_report(report, most=1)
    for part in ("001.png", "002.png", "003.png", "and 1 more", "5 problems", "005.png (train) and 009.png (test)"):
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


@pytest.mark.parametrize("background", ["white", "auto", [255, 255, 255], None])
def test_inspect__transparent_pictures_are_counted_as_they_are_read(write_karpathy: Write, background: Any) -> None:
    """Two icons with black under what is transparent: laid on a colour they differ, without alpha they do not."""
    root = write_karpathy()
    for number, box in ((0, (2, 2, 5, 5)), (14, (6, 2, 9, 5))):
        icon = Image.new("RGBA", (12, 12))
        icon.paste((0, 0, 0, 255), box)
        icon.save(root / "pictures" / f"{number:03}.png")
    (root / "pictures" / "014.png").rename(root.parent / "014.png")
    (root / "pictures" / "014.png").symlink_to("../../014.png")
    report = inspect({**_config(root), "background": background})
    assert not report.fatal
    laid = "their alpha is dropped" if background is None else "they are laid on rgb(255, 255, 255)"
    elsewhere = root / "pictures" / "014.png"
    says = "shards=DIR takes them only with shards_outside=true"
    assert report.notes[0] == f"images outside of {root}: 1, {elsewhere} the first; {says}"
    first = f"{root}/pictures/000.png the first"
    assert report.notes[1] == f"images that are transparent somewhere: 2, {first}; {laid} (data.background)"
    assert report.shared_pictures == (["000.png (train) and 014.png (test)"] if background is None else [])


def test_inspect__pictures_of_one_colour(write_karpathy: Write) -> None:
    """12 bits in a file of 16, black lines without the white under them, a photograph of nothing."""
    root = write_karpathy()
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(root / "pictures" / "003.png")
    Image.new("LA", (16, 16)).save(root / "pictures" / "004.png")
    Image.new("RGB", (16, 16), (200, 0, 0)).save(root / "pictures" / "005.png", "JPEG")
    report = inspect(_config(root))
    assert f"images of one colour, or nearly so: 3, {root}/pictures/003.png the first; look whether" in report.notes[1]
    assert not report.fatal


def test_inspect__names_that_would_move_the_cursor(write_karpathy: Write) -> None:
    def rename(data: dict[str, Any]) -> None:
        data["images"][0]["filename"] = "a\n\x1b[2J\r.png"

    text = format_report(inspect(_config(write_karpathy(change=rename))))
    assert "\\x1b[2J" in text
    assert text.replace("\n", "").isprintable()


class _Deadly(PictureFolder):
    """A picture that ends the process which reads it, as where memory is short."""

    def open(self, path: str) -> BinaryIO:
        if path.endswith("003.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().open(path)


def test_inspect__a_process_of_the_pool_that_is_killed(write_karpathy: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_karpathy()
    monkeypatch.setattr(sources, "PictureFolder", _Deadly)
    with pytest.raises(DataError, match=r"a process that looks at images was ended, .* \(0 looks at them one"):
        inspect(_config(root), workers=2)
    assert not multiprocessing.active_children()


def test_inspect__processes_that_cannot_be_started(write_karpathy: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two has begun already."""
    start, started = BaseProcess.start, iter(range(2))

    def second_fails(process: BaseProcess) -> None:
        if next(started):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        start(process)

    monkeypatch.setattr(BaseProcess, "start", second_fails)
    with pytest.raises(
        DataError, match=r"data.num_workers=2: so many processes cannot be started \(Too many open files\): take"
    ):
        inspect(_config(write_karpathy()), workers=2)
    assert not multiprocessing.active_children()


def test_inspect__nothing_there(tmp_path: Path) -> None:
    report = inspect(_config(tmp_path / "none"))
    assert report.fatal
    assert "does not exist" in format_report(report)


def test_inspect__damaged_annotations(write_karpathy: Write) -> None:
    root = write_karpathy()
    (root / "dataset.json").write_text('{"images": [')
    report = inspect(_config(root))
    assert [problem.kind for problem in report.problems] == ["not JSON"]


def test_inspect__statements(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_scenes_nlvr2(root, domain="target", seed=0, train=8, dev=4, test=4)
    report = inspect({"layout": "scenes_nlvr2", "root": root, "classes": ["False", "True"]})
    assert not report.fatal
    assert [(split.name, split.images, split.samples, split.labels) for split in report.splits] == [
        ("train", 8, 8, {"False": 4, "True": 4}),
        ("val", 4, 4, {"False": 2, "True": 2}),
        ("test", 4, 4, {"False": 2, "True": 2}),
    ]
    data = root / "nlvr" / "nlvr2" / "data"
    assert report.annotations == {
        data / name: hashlib.sha256((data / name).read_bytes()).hexdigest()
        for name in ("train.json", "dev.json", "test1.json")
    }
    assert "train: 8 images, 8 statements (False 4, True 4), sha256 of names" in format_report(report)


def test_inspect__statements_everything_at_once(write_statements: Write) -> None:
    def spoil(samples: list[dict[str, Any]]) -> None:
        samples[1]["text"] = " "
        samples[2]["images"].pop()
        samples[3]["label"] = None
        samples[5]["identifier"] = samples[4]["identifier"] = "same"

    root = write_statements(splits={"train": 8, "test": 2}, change=spoil)
    (root / "pictures" / "008-1.png").unlink()
    report = inspect({"layout": "jsonl", "root": root, "classes": None})
    assert report.fatal
    assert [problem.kind for problem in report.problems] == [
        "another number of images",
        "no label",
        "statement without words",
        "identifier used twice",
        "missing image",
    ]


def test_inspect__notes_are_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "flickr30k-images").mkdir()
    for number, split in enumerate(("train", "dev", "test")):
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(tmp_path / "flickr30k-images" / f"{number}.jpg")
        lines = [{"Flickr30K_ID": str(number), "sentence2": "a", "gold_label": label} for label in ("neutral", "-")]
        (tmp_path / f"snli_ve_{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = inspect({"layout": "snli_ve", "root": tmp_path, "classes": ["contradiction", "neutral", "entailment"]})
    assert not report.fatal
    assert len(report.notes) == 4
    text = format_report(report)
    assert "images of one colour, or nearly so: 3, " in report.notes[3]  # these are of one colour
    assert 'snli_ve_dev.jsonl: left out 1 line with the label "-"' in text
    assert "val: 1 image, 1 statement (contradiction 0, neutral 1, entailment 0)" in text


def test_inspect__one_of_each_is_told_in_the_singular(write_karpathy: Write) -> None:
    root = write_karpathy(splits={"train": 2, "test": 1}, captions=1)
    shutil.copy(root / "pictures" / "000.png", root / "pictures" / "002.png")
    (root / "pictures" / "001.png").unlink()
    lines = format_report(inspect(_config(root))).splitlines()
    assert any(line.startswith("test: 1 image, 1 caption, sha256") for line in lines)
    assert "same image in two splits (no error, but metrics may be too high): 1" in lines
    assert lines[-1] == "1 problem, 1 image in two splits"


def test_inspect__missing_splits_are_told_by_what_is_there(write_karpathy: Write) -> None:
    notes = inspect(_config(write_karpathy(splits={"train": 4}))).notes
    assert notes == [
        "no val split: mwa-train needs one: data.val_share=0.05 makes one of 5 % of train, by a hash of the images",
        "no test split: split=train evaluates another",
    ]
