"""Shards hold the same data set, any reader of tar files can read them, and no changed byte stays unknown."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path, PurePath
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load, save

from mwa_lightning.data import shard_writing
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.images.reader import FORMATS
from mwa_lightning.data.inspection import format_report, inspect
from mwa_lightning.data.layouts import LAYOUTS
from mwa_lightning.data.samples.records import RetrievalSplit
from mwa_lightning.data.scenes.writing import write_scenes, write_scenes_nlvr2
from mwa_lightning.data.shard_writing import Written, write_shards
from mwa_lightning.data.shards import store as shards
from mwa_lightning.data.shards.store import INDEX, SUMS, Shards, open_shards, read_sums
from mwa_lightning.data.sources import Source, find_source
from mwa_lightning.data.storage.stores import DamagedShard
from mwa_lightning.errors import ConfigError, DataError, counted
from mwa_lightning.system.whole_files import file_sha256

Write = Callable[..., Path]

AGAIN = "copy it again from where the shards were made, or make them again with mwa-prepare shards=DIR"
ABOUT = "mwa_lightning_shards"  # what an index says of itself
SMALL = 5_000  # bytes of a shard: some pictures


def _picture(path: Path, *, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _karpathy(root: Path, name: str, *, filepath: str, folder: str) -> None:
    images = []
    for i, split in enumerate(("train", "restval", "train", "val", "test", "test")):
        _picture(root / folder / filepath / f"{i}.JPG", seed=i)
        sentences = [{"raw": f"a caption {i} {j}", "sentid": 7 * i + j} for j in range(2)]
        entry = {"filename": f"{i}.JPG", "split": split, "sentences": sentences, "imgid": 3 * i}
        images.append({**entry, **({"filepath": filepath} if filepath else {})})
    (root / name).write_text(json.dumps({"images": images}))


def _pairs(root: Path) -> None:
    with (root / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption", "split"])
        for i, split in enumerate(("train", "train", "val", "test")):
            _picture(root / "photos" / f"é{i}.png", seed=i)
            rows.writerows([f"./photos/é{i}.png", f"caption {i} {j}, with a comma", split] for j in range(2))


def _nlvr2(root: Path) -> None:
    """`dev` lies beside `images`, and has subsets."""
    data = root / "nlvr" / "nlvr2" / "data"
    (data / "balanced").mkdir(parents=True)
    for split, place in (("train", "images/train/4"), ("dev", "dev"), ("test1", "images/test1")):
        lines = []
        for i in range(3):
            line = {"identifier": f"{split}-{i}-0-1", "sentence": f"{split} {i}", "label": str(i == 1), "directory": 4}
            lines.append(line if split == "train" else {key: line[key] for key in line if key != "directory"})
            for side in range(2):
                _picture(root / place / f"{split}-{i}-0-img{side}.png", seed=2 * i + side + 100 * len(split))
        (data / f"{split}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (data / "balanced" / "balanced_dev.json").write_text(json.dumps({"identifier": "dev-1-0-1"}) + "\n")


def _snli_ve(root: Path) -> None:
    for number, split in enumerate(("train", "dev", "test")):
        _picture(root / "flickr30k-images" / f"{number}.jpg", seed=number)
        labels = ("neutral", "entailment", "contradiction", "-")
        lines = [{"Flickr30K_ID": str(number), "sentence2": f"about {number}", "gold_label": label} for label in labels]
        (root / f"snli_ve_{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _jsonl(root: Path) -> None:
    """One picture's path is absolute, and it lies elsewhere."""
    elsewhere = root.with_name("elsewhere") / "far.png"
    _picture(elsewhere, seed=99)
    lines = []
    for i, split in enumerate(("train", "train", "val", "test")):
        _picture(root / "photos" / f"{i}.png", seed=i)
        images = [f"photos/{i}.png", str(elsewhere)]
        lines.append({"images": images, "text": f"statement {i}", "label": ("no", "yes")[i % 2], "split": split})
    (root / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


MAKE: dict[str, Callable[[Path], Any]] = {
    "coco": lambda root: _karpathy(root, "dataset_coco.json", filepath="train2014", folder=""),
    "flickr30k": lambda root: _karpathy(root, "dataset_flickr30k.json", filepath="", folder="flickr30k-images"),
    "karpathy": lambda root: _karpathy(root, "mine.json", filepath="a/b", folder=""),
    "pairs": _pairs,
    "scenes": lambda root: write_scenes(root, domain="target", seed=0, train=3, val=2, test=2),
    "scenes_nlvr2": lambda root: write_scenes_nlvr2(root, domain="target", seed=0, train=4, dev=4, test=4),
    "nlvr2": _nlvr2,
    "snli_ve": _snli_ve,
    "statements": _jsonl,
    "jsonl": _jsonl,
}


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Source]:
    """A small data set of a layout."""

    def make(layout: str = "karpathy") -> Source:
        root = tmp_path / "set"
        root.mkdir()
        MAKE[layout](root)
        return find_source(layout=layout, root=root)

    return make


def _content(source: Source) -> dict[str, Any]:
    """All that a run gets of a data set: its splits, and the bytes of their pictures."""
    content: dict[str, Any] = {}
    for name, split in source.read(Problems()).items():
        pictures = split.pictures
        texts = split.captions if isinstance(split, RetrievalSplit) else split.statements
        content[name] = {
            "texts": list(texts),
            "samples": [split.sample_id(i) for i in range(len(split))],
            "names": list(pictures.names),
            "labels": None if pictures.labels is None else list(pictures.labels),
            "image_ids": pictures.image_ids.tolist(),
            "bytes": [source.store.open(picture.path).read() for picture in pictures],
            "sizes": [source.store.size(picture.path) for picture in pictures],
        }
        if not isinstance(split, RetrievalSplit):
            groups = None if split.groups is None else split.groups.tolist()
            subsets = {key: inside.tolist() for key, inside in split.subsets.items()}
            content[name] |= {"classes": split.classes, "groups": groups, "subsets": subsets}
    return content


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_layouts__all_are_tested() -> None:
    assert set(MAKE) == set(LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards__same_data_set(layout: str, made: Callable[..., Source], tmp_path: Path) -> None:
    source = made(layout)
    expected = _content(source)
    assert {"train", "val", "test"} <= expected.keys()
    written = write_shards(source, tmp_path / "shards", shard_bytes=SMALL, outside=layout in ("statements", "jsonl"))
    shutil.rmtree(tmp_path / "set")  # nothing else is needed
    shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    packed = find_source(layout=layout, root=None, shards=tmp_path / "shards")
    assert _content(packed) == expected
    assert packed.image_reader(exif=None).exif is source.image_reader(exif=None).exif
    assert packed.official is source.official
    assert written.shards == len(list((tmp_path / "shards").glob("*.tar"))) > 1
    assert written.bytes == sum(map(len, _files(tmp_path / "shards").values()))
    assert list(packed.store.damage(thorough=True)) == []
    assert not inspect({"layout": layout, "root": None, "shards": tmp_path / "shards"}).fatal


def test_shards__of_shards(made: Callable[..., Source], tmp_path: Path) -> None:
    """What was written at another size comes out as if from the files."""
    source = made("nlvr2")
    write_shards(source, tmp_path / "large", shard_bytes=10**9)
    write_shards(source, tmp_path / "small", shard_bytes=SMALL)
    again = find_source(layout="nlvr2", root=None, shards=tmp_path / "large")
    write_shards(again, tmp_path / "again", shard_bytes=SMALL)
    assert _files(tmp_path / "again") == _files(tmp_path / "small")


def test_shards__are_plain_tar_files_in_webdataset_s_form(made: Callable[..., Source], tmp_path: Path) -> None:
    source = made("coco")
    write_shards(source, tmp_path / "shards", shard_bytes=SMALL)
    members: dict[str, bytes] = {}
    for file in sorted((tmp_path / "shards").glob("*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.isreg()) == (0, 0, 0, True)
                content = tar.extractfile(member)
                assert content is not None
                members[member.name] = content.read()
        assert file.stat().st_size <= SMALL + tarfile.RECORDSIZE
    keys = [f"{number:09}" for number in range(6)]
    assert list(members) == [f"{key}.{suffix}" for key in keys for suffix in ("jpg", "json")]
    root = tmp_path / "set" / "train2014"
    by_path = {}
    for key in keys:
        about = json.loads(members[f"{key}.json"])
        by_path[about["path"]] = about
        assert members[f"{key}.jpg"] == (root / PurePath(about["path"]).name).read_bytes()
    assert by_path["train2014/1.JPG"] == {
        "path": "train2014/1.JPG",
        "split": "train",
        "captions": ["a caption 1 0", "a caption 1 1"],
    }


def test_shards__sums_are_those_of_sha256sum(made: Callable[..., Source], tmp_path: Path) -> None:
    write_shards(made("nlvr2"), tmp_path / "shards", shard_bytes=SMALL)
    checked = subprocess.run(
        ["sha256sum", "-c", SUMS], cwd=tmp_path / "shards", capture_output=True, text=True, check=True
    ).stdout
    listed = {line.removesuffix(": OK") for line in checked.splitlines()}
    assert listed == _files(tmp_path / "shards").keys() - {SUMS}
    assert "annotations/balanced/balanced_dev.json" in listed


def test_shards__same_bytes_every_time(made: Callable[..., Source], tmp_path: Path) -> None:
    source = made("karpathy")
    write_shards(source, tmp_path / "a", shard_bytes=SMALL)
    for path in (tmp_path / "set").rglob("*"):
        os.utime(path, (1, 1))
    write_shards(source, tmp_path / "b", shard_bytes=SMALL)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


def test_shards__same_picture_is_stored_once(write_karpathy: Write, tmp_path: Path) -> None:
    root = write_karpathy()
    shutil.copy(root / "pictures" / "000.png", root / "pictures" / "014.png")
    shutil.copy(root / "pictures" / "000.png", root / "pictures" / "003.png")
    source = find_source(layout="karpathy", root=root)
    written = write_shards(source, tmp_path / "shards", shard_bytes=10**6)
    assert (written.paths, written.images, written.shards) == (15, 13, 1)
    packed = find_source(layout="karpathy", root=None, shards=tmp_path / "shards")
    assert _content(packed) == _content(source)
    report = inspect({"layout": "karpathy", "shards": tmp_path / "shards"})
    assert report.shared_pictures == ["000.png (train) and 014.png (test)"]


def test_shards__pictures_that_do_not_decode_stay_as_they_are(write_karpathy: Write, tmp_path: Path) -> None:
    """They are the data set's own matter: reported as from files, and found in the shard."""
    root = write_karpathy()
    (root / "pictures" / "001.png").write_bytes(b"")
    cut = (root / "pictures" / "002.png").read_bytes()[:12]
    (root / "pictures" / "002.png").write_bytes(cut)
    write_shards(find_source(layout="karpathy", root=root), tmp_path / "shards", shard_bytes=10**6)
    for workers in (0, 2):
        report = inspect({"layout": "karpathy", "shards": tmp_path / "shards"}, workers=workers)
        assert [problem.kind for problem in report.problems] == ["image of 0 bytes", "unreadable image"]
        shard = tmp_path / "shards" / "shard-00000.tar"
        assert report.problems[0].message.startswith(f"image pictures/001.png (000000001 in {shard}) has 0 bytes")


SECRETS = (
    b"-----BEGIN OPENSSH PRIVATE KEY-----\n",
    b"P4ssword\n",
    b"BMW: 1234\n",
    b"%!PS-Adobe",
    b"\0\0\1\0",
    b"\0" * 99,
)


@pytest.mark.parametrize("secret", SECRETS)
def test_shards__what_is_no_picture_is_refused(write_karpathy: Write, tmp_path: Path, secret: bytes) -> None:
    root = write_karpathy()
    (root / "pictures" / "002.png").write_bytes(secret)
    with pytest.raises(DataError, match=r"^image .*/002.png is .*: .*, or leave it out$"):
        write_shards(find_source(layout="karpathy", root=root), tmp_path / "shards", shard_bytes=10**6, outside=True)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("form", FORMATS)
def test_shards__every_format_is_a_picture(write_karpathy: Write, tmp_path: Path, form: str) -> None:
    root = write_karpathy()
    Image.new("RGB", (16, 16), (1, 2, 3)).save(root / "pictures" / "002.png", form)
    write_shards(find_source(layout="karpathy", root=root), tmp_path / "shards", shard_bytes=10**6)
    assert not inspect({"layout": "karpathy", "shards": tmp_path / "shards"}).fatal


@pytest.mark.parametrize("way", ["dots", "absolute", "link", "linked folder"])
def test_shards__pictures_elsewhere_are_taken_if_one_says_so(write_karpathy: Write, tmp_path: Path, way: str) -> None:
    """Annotations from a stranger may name any file here; even a picture may be private."""
    root = write_karpathy()
    (tmp_path / "home").mkdir()
    private = (root / "pictures" / "002.png").rename(tmp_path / "home" / "private.png")
    path = {"dots": "../home/private.png", "absolute": str(private), "linked folder": "away/private.png"}.get(way)
    if path is not None:
        content = json.loads((root / "dataset.json").read_text())
        content["images"][2] |= {"filepath": "", "filename": path}
        (root / "dataset.json").write_text(json.dumps(content))
    (root / "pictures" / "002.png").symlink_to(private)
    (root / "away").symlink_to(private.parent)
    source = find_source(layout="karpathy", root=root)
    with pytest.raises(
        DataError, match=r"^images lie outside of .*/set, 1 of 15, .* the first .*; shards_outside=true t"
    ):
        write_shards(source, tmp_path / "shards", shard_bytes=10**6)
    assert not (tmp_path / "shards").exists()
    write_shards(source, tmp_path / "shards", shard_bytes=10**6, outside=True)
    assert _content(find_source(layout="karpathy", root=None, shards=tmp_path / "shards")) == _content(source)


def test_shards__a_data_set_may_be_a_link_and_have_links_within(write_karpathy: Write, tmp_path: Path) -> None:
    root = write_karpathy()
    (root / "blobs").mkdir()
    (root / "pictures" / "002.png").rename(root / "blobs" / "7")
    (root / "pictures" / "002.png").symlink_to("../blobs/7")
    root.rename(tmp_path / "scratch")
    root.symlink_to("scratch")
    assert write_shards(find_source(layout="karpathy", root=root), tmp_path / "shards", shard_bytes=10**6).new


def test_shards__the_folder_of_pictures_that_the_user_names(write_karpathy: Write, tmp_path: Path) -> None:
    root = write_karpathy()
    (root / "pictures").rename(tmp_path / "pictures")
    source = find_source(layout="karpathy", root=root, images=tmp_path)
    assert write_shards(source, tmp_path / "shards", shard_bytes=10**6).new


def test_shards__missing_pictures_are_refused_before_anything_is_written(write_karpathy: Write, tmp_path: Path) -> None:
    root = write_karpathy()
    for number in (4, 9):
        (root / "pictures" / f"{number:03}.png").unlink()
    with pytest.raises(
        DataError, match=r"^images are missing, 2 of 15, .*/004.png the first \(No such file or directory; mwa-"
    ):
        write_shards(find_source(layout="karpathy", root=root), tmp_path / "shards", shard_bytes=10**6)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="images are missing, 2 of 15"):
        write_shards(find_source(layout="karpathy", root=root), tmp_path / "a" / "b" / "c", shard_bytes=10**6)
    assert list((tmp_path / "a").iterdir()) == []  # which was there before


def test_write__again(made: Callable[..., Source], tmp_path: Path) -> None:
    """The same are there already; others, and foreign files, stay as they are."""
    source, folder = made("karpathy"), tmp_path / "shards"
    folder.mkdir()
    first = write_shards(source, folder, shard_bytes=SMALL)
    assert first.new
    before = {path: path.stat() for path in folder.rglob("*")}
    assert write_shards(source, folder, shard_bytes=SMALL) == first._replace(new=False)
    with pytest.raises(DataError, match=r"of another data set, of other annotations or of another size: remove it"):
        write_shards(source, folder, shard_bytes=SMALL + 1)
    source.annotations.write_text(source.annotations.read_text().replace("a caption", "one caption"))
    with pytest.raises(DataError, match=r"of another data set, of other annotations or of another size: remove it"):
        write_shards(source, folder, shard_bytes=SMALL)
    assert {path: path.stat() for path in folder.rglob("*")} == before
    picture = tmp_path / "set" / "a" / "b" / "3.JPG"
    source.annotations.write_text(source.annotations.read_text().replace("one caption", "a caption"))
    picture.unlink()  # as where the files make room for the shards
    assert not write_shards(source, folder, shard_bytes=SMALL).new
    picture.write_bytes(b"another picture")
    with pytest.raises(DataError, match=rf"holds another a/b/3.JPG than {picture} is now: to make them again, remove"):
        write_shards(source, folder, shard_bytes=SMALL)
    (folder / "shard-00001.tar").unlink()
    with pytest.raises(DataError, match=rf"shard-00001.tar is missing, .*; to make them again, remove {folder} first$"):
        write_shards(source, folder, shard_bytes=SMALL)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"other holds other files than shards, or only some of them: give"):
        write_shards(source, tmp_path / "other", shard_bytes=SMALL)
    assert _files(tmp_path / "other") == {"thesis.txt": b"mine"}
    with pytest.raises(DataError, match=r"thesis.txt is a file: give a new folder"):
        write_shards(source, tmp_path / "other" / "thesis.txt", shard_bytes=SMALL)


@pytest.mark.parametrize("there", [True, False], ids=["to an empty folder", "to nothing"])
def test_write__through_a_link(there: bool, made: Callable[..., Source], tmp_path: Path) -> None:
    """As to scratch storage: the link stays."""
    link, target = tmp_path / "link", tmp_path / "scratch" / "shards"
    target.parent.mkdir()
    if there:
        target.mkdir()
    link.symlink_to(target)
    source = made("karpathy")
    assert write_shards(source, link, shard_bytes=SMALL).new
    assert link.is_symlink()
    assert list(open_shards(target).damage(thorough=True)) == []
    assert list(target.parent.iterdir()) == [target]
    assert not write_shards(source, link, shard_bytes=SMALL).new


@pytest.mark.parametrize("text", [b"d\xe9j\xe0.json", "a\u2028b\x85c\x0bd\x1ce\rf.json".encode()])
def test_write__annotations_of_an_odd_name(text: bytes, write_karpathy: Write, tmp_path: Path) -> None:
    """One that is no text, and one with what Python takes for ends of lines."""
    root = write_karpathy()
    name = Path(os.fsdecode(text))
    (root / "dataset.json").rename(root / name)
    write_shards(find_source(layout="karpathy", root=root), tmp_path / "shards", shard_bytes=SMALL)
    assert find_source(layout="karpathy", root=None, shards=tmp_path / "shards").annotations.name == str(name)
    subprocess.run(["sha256sum", "--quiet", "-c", SUMS], cwd=tmp_path / "shards", check=True)


def test_write__into_an_empty_folder_which_stays_the_same(made: Callable[..., Source], elsewhere: Path) -> None:
    """Also the current one."""
    elsewhere.chmod(0o700)
    before = elsewhere.stat()
    assert write_shards(made("karpathy"), Path(), shard_bytes=SMALL).new
    after = elsewhere.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert INDEX in read_sums(Path())


def test_write__a_file_system_without_locks(
    made: Callable[..., Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is none here, so the kernel's answer is put in."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert write_shards(made("karpathy"), tmp_path / "shards", shard_bytes=SMALL).new
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path}/shards: this file system has no locks (Function not implemented)")


def test_write__progress_of_pictures_and_of_files(made: Callable[..., Source], tmp_path: Path) -> None:
    told: dict[str, list[int]] = {}

    @contextmanager
    def follow(what: str, total: int) -> Iterator[Callable[[], None]]:
        told[what] = [total, 0]

        def advance() -> None:
            told[what][1] += 1

        yield advance

    write_shards(made("karpathy"), tmp_path / "shards", shard_bytes=SMALL, follow=follow)
    files = len(_files(tmp_path / "shards")) - 1
    assert told == {"looking for images": [6, 6], "writing images": [6, 6], "checksums of files": [files, files]}


def test_write__full_disk(made: Callable[..., Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> str:
        raise OSError(28, "No space left on device")

    source = made("karpathy")
    monkeypatch.setattr(shard_writing, "file_sha256", full)
    with pytest.raises(DataError, match=r"shards=.* cannot be written \(No space left on device\): make room or"):
        write_shards(source, tmp_path / "shards", shard_bytes=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


# Writes shards, and at the sixth picture does what it is told.
WRITE = """
import os, signal, sys
from pathlib import Path
from mwa_lightning.data import shard_writing
from mwa_lightning.data.sources import find_source
root, folder, at_sixth = sys.argv[1:]
add, count = shard_writing._Tars.add, iter(range(100))
def add_and(*arguments):
    if next(count) == 5:
        exec(at_sixth)
    return add(*arguments)
shard_writing._Tars.add = add_and
shard_writing.write_shards(find_source(layout="karpathy", root=root), Path(folder), shard_bytes=4000)
"""
DIE = "os.kill(os.getpid(), signal.SIGKILL)"
WAIT = "print('here', flush=True); sys.stdin.read()"


def test_write__killed(write_karpathy: Write, tmp_path: Path) -> None:
    """Nothing is left that looks complete, and the next call clears it away."""
    root, folder = write_karpathy(), tmp_path / "shards"
    assert subprocess.run([sys.executable, "-c", WRITE, root, folder, DIE], check=False).returncode == -signal.SIGKILL
    left = {path.name for path in folder.iterdir()}
    assert ".lock" in left
    (folder / ".notes.2024").touch()
    with pytest.raises(DataError, match=r"holds no shards of a data set, or not all of them"):
        open_shards(folder)
    source = find_source(layout="karpathy", root=root)
    with pytest.raises(DataError, match=r"holds other files than shards"):
        write_shards(source, folder, shard_bytes=10**6)
    assert {path.name for path in folder.iterdir()} == {*left, ".notes.2024"}
    (folder / ".notes.2024").unlink()
    assert write_shards(source, folder, shard_bytes=10**6).new
    assert sorted(_files(folder)) == ["annotations/dataset.json", INDEX, SUMS, "shard-00000.tar"]


def test_write__two_at_once(write_karpathy: Write, tmp_path: Path) -> None:
    root, folder = write_karpathy(), tmp_path / "shards"
    command = [sys.executable, "-c", WRITE, root, folder, WAIT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "here\n"
        with pytest.raises(DataError, match=r"shards=.*/shards is being written by another process: wait for it"):
            write_shards(find_source(layout="karpathy", root=root), folder, shard_bytes=4000)
        assert read_sums(folder) == {}
        first.communicate("go on", timeout=60)
    assert first.returncode == 0
    assert [path.name for path in tmp_path.iterdir() if "shards" in path.name] == ["shards"]
    assert list(open_shards(folder).damage(thorough=True)) == []
    assert not write_shards(find_source(layout="karpathy", root=root), folder, shard_bytes=4000).new


# Makes one folder of shards after the other; waits where another process is at it.
IN_TURN = """
import sys
from pathlib import Path
from mwa_lightning.data.shard_writing import write_shards
from mwa_lightning.data.sources import find_source
from mwa_lightning.errors import DataError
source, number = find_source(layout="karpathy", root=sys.argv[1]), 0
while number < 10:
    try:
        print(number if write_shards(source, Path(sys.argv[2], str(number)), shard_bytes=4000).new else "", flush=True)
        number += 1
    except DataError as error:
        assert "by another process" in str(error), error
"""


def test_write__three_that_want_the_same_folders(write_karpathy: Write, tmp_path: Path) -> None:
    """One of them makes each, and none takes anything from another."""
    root, place = write_karpathy(), tmp_path / "place"
    command = [sys.executable, "-c", IN_TURN, root, place]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    made = " ".join(process.communicate(timeout=250)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(map(int, made.split())) == list(range(10))
    folders = list(place.iterdir())
    assert len(folders) == 10
    assert {frozenset(_files(folder)) for folder in folders} == {frozenset(_files(folders[0]))}
    assert all(_files(folder) == _files(folders[0]) for folder in folders)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards that no test changes."""
    root = tmp_path_factory.mktemp("whole")
    (root / "set").mkdir()
    MAKE["karpathy"](root / "set")
    write_shards(find_source(layout="karpathy", root=root / "set"), root / "shards", shard_bytes=4000)
    return root / "shards"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """Shards to damage."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def _paths(store: Shards) -> list[str]:
    return list(store.index.paths)


@settings(max_examples=60)
@given(data=st.data())
def test_damage__any_changed_byte_is_found_and_named(data: st.DataObject, whole: Path) -> None:
    """An inspection names the shard; reading fails if, and only if, the byte is one of a picture's."""
    store = open_shards(whole)
    number = data.draw(st.integers(0, len(store.index.shard_sizes) - 1), label="shard")
    shard = whole / f"shard-{number:05}.tar"
    content = shard.read_bytes()
    offset = data.draw(st.integers(0, len(content) - 1), label="byte")
    flip = data.draw(st.integers(1, 255), label="bits")
    hit = [
        path
        for path in _paths(store)
        for place in [store.index.place(store.index.member(path) or 0)]
        if place.shard == number and place.offset <= offset < place.offset + place.size
    ]
    try:
        changed = content[:offset] + bytes([content[offset] ^ flip]) + content[offset + 1 :]
        shard.write_bytes(changed)
        assert list(store.damage(thorough=True)) == [
            f"{shard} is damaged (its SHA-256 is not the one in sha256.txt): {AGAIN}"
        ]
        for path in _paths(store):
            if path in hit:
                with pytest.raises(
                    DamagedShard, match=rf"^{shard} is damaged at 00000000\d, image {path} \(another CRC"
                ):
                    store.open(path)
            else:
                store.open(path)
    finally:
        shard.write_bytes(content)


def test_damage__cut_short_missing_or_too_long(copy: Path) -> None:
    store = open_shards(copy)
    files = sorted(copy.glob("*.tar"))
    assert len(files) >= 3
    sizes = [file.stat().st_size for file in files]
    files[0].write_bytes(files[0].read_bytes()[:600])
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes() + b"x")
    assert list(store.damage(thorough=False)) == list(store.damage(thorough=True))
    counts = [int((store.index.shards == number).sum()) for number in range(3)]
    holds = [f"it holds {counted(count, 'image')}" for count in counts]
    assert list(store.damage(thorough=False)) == [
        f"{files[0]} is cut short (600 bytes where {sizes[0]:,} were written), {holds[0]}: {AGAIN}",
        f"{files[1]} is missing, {holds[1]}: {AGAIN}",
        f"{files[2]} is too long ({sizes[2] + 1:,} bytes where {sizes[2]:,} were written), {holds[2]}: {AGAIN}",
    ]
    says = []
    for path in _paths(store):
        try:
            store.open(path)
        except DamagedShard as error:
            says.append(str(error))
    assert [sum(str(file) in line for line in says) for file in files[:3]] == [*counts[:2], 0]
    assert any("shard-00000.tar is cut short at 000000000, image a/b/0.JPG" in line for line in says)
    assert any("shard-00001.tar is missing" in line for line in says)
    report = inspect({"layout": "karpathy", "shards": copy})
    assert [problem.kind for problem in report.problems] == ["damaged shard"] * 3
    assert report.fatal
    assert f"  {files[1]} is missing" in format_report(report)


@pytest.mark.parametrize("name", [INDEX, "annotations/mine.json"])
def test_open__index_and_annotations_are_compared_with_their_sums(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    for offset in (0, len(content) // 2, len(content) - 1):
        (copy / name).write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
        with pytest.raises(DataError, match=rf"{copy / name} is damaged \(its SHA-256 is not the one in sha256.txt\)"):
            open_shards(copy)
    (copy / name).unlink()
    with pytest.raises(DataError, match=rf"{copy / name} is missing: copy it again"):
        find_source(layout="karpathy", root=None, shards=copy)
    report = inspect({"layout": "karpathy", "shards": copy})
    assert [problem.kind for problem in report.problems] == ["not found"]


@settings(max_examples=60)
@given(data=st.data())
def test_open__a_list_of_checksums_that_is_cut_short_or_changed(data: st.DataObject, whole: Path) -> None:
    """One line names it, or what it no longer fits; nothing is used that it does not name."""
    content = (whole / SUMS).read_bytes()
    place = data.draw(st.integers(0, len(content) - 1), label="byte")
    if data.draw(st.booleans(), label="cut"):
        changed = content[:place]
    else:
        flip = data.draw(st.integers(1, 255), label="bits")
        changed = content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :]
    try:
        (whole / SUMS).write_bytes(changed)
        try:
            source = find_source(layout="karpathy", root=None, shards=whole)
        except DataError as error:
            said = str(error)
        else:
            said = str(whole)
            named = shards.read_sums(whole) == {line[66:]: line[:64] for line in content.decode().splitlines()}
            assert named or list(source.store.damage(thorough=True))
        assert str(whole) in said
    finally:
        (whole / SUMS).write_bytes(content)


def test_open__files_of_annotations_that_have_no_checksum(made: Callable[..., Source], tmp_path: Path) -> None:
    """A further file of a subset would change figures."""
    folder = tmp_path / "shards"
    write_shards(made("nlvr2"), folder, shard_bytes=SMALL)
    name = "annotations/balanced/balanced_test1.json"
    (folder / name).write_text(json.dumps({"identifier": "test1-1-0-1"}) + "\n")
    with pytest.raises(DataError, match=rf"{SUMS} has no checksum of {name}, which it should: copy it again"):
        find_source(layout="nlvr2", root=None, shards=folder)


def test_open__nothing_foreign_or_of_another_version(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.shards=.*/none: there is no such folder; mwa-prepare data=... shards="):
        open_shards(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"data.shards=.*/empty holds no shards .* \(it has no list of files, sha"):
        open_shards(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"made of data=karpathy: take that in place of data=coco"):
        find_source(layout="coco", root=None, shards=copy)

    def replace_index(content: bytes) -> None:
        before = file_sha256(copy / INDEX)
        (copy / INDEX).write_bytes(content)
        sums = (copy / SUMS).read_text()
        (copy / SUMS).write_text(sums.replace(before, file_sha256(copy / INDEX)))

    content = (copy / INDEX).read_bytes()
    replace_index(content.replace(rb"\"version\": 1}", rb"\"version\": 2}"))
    with pytest.raises(
        DataError, match=r"is of version 2, and this mwa_lightning reads version 1: make the shards aga"
    ):
        open_shards(copy)
    for foreign in (b"", b"\x00" * 100, content.replace(b"mwa_lightning_shards", b"another_programmes_x")):
        replace_index(foreign)
        with pytest.raises(DataError, match=r"is no index of shards: give the folder that mwa-prepare"):
            open_shards(copy)


def _rewritten(folder: Path, change: Callable[[dict[str, np.ndarray], dict[str, Any]], object]) -> None:
    """Change the lists and the facts of an index, and its checksum with it."""
    content = (folder / INDEX).read_bytes()
    arrays = {name: array.copy() for name, array in load(content).items()}
    about = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"][ABOUT])
    change(arrays, about)
    before = file_sha256(folder / INDEX)
    (folder / INDEX).write_bytes(save(arrays, metadata={ABOUT: json.dumps(about)}))
    (folder / SUMS).write_text((folder / SUMS).read_text().replace(before, file_sha256(folder / INDEX)))


def _found(folder: Path) -> list[str]:
    """What an inspection says of shards; a run is refused at its start by the first of it, or finds it as it reads."""
    report = inspect({"layout": "karpathy", "shards": folder})
    assert report.fatal is bool(report.problems)
    return [problem.message for problem in report.problems]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lists, about: lists["shards"].put(-1, 7), "images in no shard: 1"),
        (lambda lists, about: lists["shards"].put(0, -1), "images in no shard: 1"),
        (lambda lists, about: lists["offsets"].put(1, -5), "images outside of their shard: 1"),
        (lambda lists, about: lists["offsets"].put(1, 2**63 - 1), "images outside of their shard: 1"),
        (lambda lists, about: lists["members"].put(2, 10**6), "paths that stand for no image: 1"),
        (lambda lists, about: lists["sizes"].put([0, 1], 2**40), "images of an impossible size: 2"),
        (lambda lists, about: lists["sizes"].put(0, 2**31 - 1), "images outside of their shard: 1"),
        (lambda lists, about: lists["checksums"].put(0, -1), "images with no checksum: 1"),
        (lambda lists, about: lists["shard_sizes"].put(0, -1), "images outside of their shard: 1"),
        (lambda lists, about: lists.pop("sizes"), "its lists are checksums, "),
        (lambda lists, about: lists.update(more=lists["sizes"]), "its lists are checksums, "),
        (lambda lists, about: lists.update(sizes=lists["sizes"][1:]), "differ in length"),
        (lambda lists, about: lists.update(sizes=lists["sizes"] * np.nan), "sizes is no list of whole numbers"),
        (lambda lists, about: lists.update(sizes=lists["sizes"].astype(np.int32)), "sizes is no list of whole numbers"),
        (lambda lists, about: lists.update(sizes=lists["sizes"][None]), "sizes is no list of whole numbers"),
        (lambda lists, about: lists["path_ends"].put(-1, 10**9), "its paths do not end where it says"),
        (lambda lists, about: lists["path_ends"].put(0, -1), "its paths do not end where it says"),
        (lambda lists, about: lists["path_bytes"].put(0, 255), "its paths are not in order"),
        (lambda lists, about: lists["path_bytes"].put(0, ord("z")), "its paths are not in order"),
        (lambda lists, about: about.update(layout=["karpathy"]), "it lacks the layout"),
        (lambda lists, about: about.pop("shard_bytes"), "it lacks the layout or the size of shards"),
    ],
)
def test_open__an_index_that_says_what_cannot_be(
    copy: Path, change: Callable[[dict[str, np.ndarray], dict[str, Any]], object], says: str
) -> None:
    _rewritten(copy, change)
    (line,) = _found(copy)
    assert line.startswith(f"{copy / INDEX} does not fit itself or its shards (")
    assert says in line


@pytest.mark.parametrize("names", [("offsets", "sizes", "checksums"), ("members",)])
def test_damage__an_index_that_takes_one_picture_for_another(
    made: Callable[..., Source], tmp_path: Path, names: tuple[str, ...]
) -> None:
    """Its checksums fit the bytes; what the shards say of themselves does not."""
    folder = tmp_path / "shards"
    write_shards(made("karpathy"), folder, shard_bytes=10**6)

    def swap(lists: dict[str, np.ndarray], about: dict[str, Any]) -> None:
        for name in names:
            lists[name][[0, 1]] = lists[name][[1, 0]]

    _rewritten(folder, swap)
    (line,) = _found(folder)
    assert line == f"{folder}/shard-00000.tar does not hold what {INDEX} says of 2 images, 000000000 the first: {AGAIN}"


@settings(max_examples=40)
@given(data=st.data())
def test_damage__an_index_with_any_other_number_is_found(data: st.DataObject, whole: Path) -> None:
    """At once, or where the shards are looked through; a run reads no other picture than the shards have there."""
    kept = {path: path.read_bytes() for path in (whole / INDEX, whole / SUMS)}
    extreme = st.sampled_from([-(2**63), -1, 0, 1, 2, 511, 512, 2**31, 2**32, 2**63 - 1])

    def change(lists: dict[str, np.ndarray], about: dict[str, Any]) -> None:
        name = data.draw(st.sampled_from(sorted(lists)))
        place = data.draw(st.integers(0, len(lists[name]) - 1))
        value = data.draw(st.integers(0, 255) if name == "path_bytes" else extreme | st.integers(0, 20_000))
        hypothesis.assume(value != lists[name][place])
        lists[name][place] = value

    try:
        _rewritten(whole, change)
        assert all(line.isprintable() for line in _found(whole))
        assert _found(whole)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


@pytest.mark.parametrize("name", ["annotations/../../mine.json", "/etc/passwd"])
def test_open__no_file_outside_of_the_folder(copy: Path, name: str) -> None:
    (copy / SUMS).write_text((copy / SUMS).read_text() + f"{'0' * 64}  {name}\n")
    (line,) = _found(copy)
    assert line == f"{copy / SUMS} names a file outside of its folder, {name}: {AGAIN}"


@pytest.mark.parametrize("name", [INDEX, SUMS, "annotations/mine.json", "shard-00000.tar"])
def test_open__what_is_no_file_is_named_at_once(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert f"{copy / name} cannot be read (it is a named pipe, not a file)" in _found(copy)[0]


def test_reading__shards_that_change_meanwhile(copy: Path, tmp_path: Path) -> None:
    """Each picture is that of the index, or none: one line ends the run, which goes on where all is as before."""
    expected = {path: open_shards(copy).open(path).read() for path in _paths(open_shards(copy))}
    shard = copy / "shard-00000.tar"
    kept = shard.read_bytes()
    index = open_shards(copy).index
    held = [path for path in expected if not index.shards[index.member(path) or 0]]

    def another() -> None:
        (tmp_path / "another.tar").write_bytes(kept[:700] + kept[701:] + b"x")
        (tmp_path / "another.tar").replace(shard)

    for change in (lambda: os.truncate(shard, 700), another, lambda: shard.write_bytes(bytes(len(kept))), shard.unlink):
        for begun in (False, True):
            shard.unlink(missing_ok=True)
            shard.write_bytes(kept)
            store = open_shards(copy)
            if begun:
                store.open(held[0])
            change()
            for path, content in expected.items():
                try:
                    assert store.open(path).read() == content
                except DamagedShard as error:
                    assert path in held
                    assert "\n" not in str(error)  # noqa: PT017


def test_open__a_path_that_was_not_stored(whole: Path) -> None:
    store = open_shards(whole)
    for path in ("a/b/6.JPG", "a/b", "", "z"):
        assert store.size(path) is None
        with pytest.raises(DataError, match=r"is not in the shards at .*: make them again"):
            store.open(path)
    assert list(store.paths()) == sorted(store.paths())
    assert "a/b/0.JPG" in store.paths()


def _checksums(store: Shards, paths: list[str]) -> list[int]:
    return [zlib.crc32(store.open(path).read()) for path in paths]


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_reading__from_many_threads_with_few_open_files(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "OPEN_SHARDS", 1)
    store = open_shards(whole)
    paths = _paths(store) * 50
    expected = [store.index.place(store.index.member(path) or 0).checksum for path in paths]
    before = _open_files()
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda i: _checksums(store, paths[i::8]), range(8)))
    assert parts == [expected[i::8] for i in range(8)]
    assert _open_files() - before <= 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_reading__from_other_processes(whole: Path, method: str) -> None:
    """Also after this one has opened all: forked processes share its files, others open their own."""
    store = open_shards(whole)
    paths = _paths(store) * 5
    expected = _checksums(store, paths)
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as pool:
        parts = [pool.submit(_checksums, store, paths[i::4]) for i in range(4)]
        assert [part.result(120) for part in parts] == [expected[i::4] for i in range(4)]
    assert len(pickle.dumps(store)) < 10_000


def test_written__counts(made: Callable[..., Source], tmp_path: Path) -> None:
    written = write_shards(made("karpathy"), tmp_path / "shards", shard_bytes=10**6)
    assert written == Written(6, 6, 1, sum(map(len, _files(tmp_path / "shards").values())), True)
