"""The files of each layout are found where its users put them, or missed with a line that says what belongs there."""

from __future__ import annotations

from pathlib import Path

import pytest

from mwa_lightning.data.layouts import LAYOUTS
from mwa_lightning.data.sources import find_source
from mwa_lightning.errors import ConfigError, DataError


def _files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_find_source__official(tmp_path: Path) -> None:
    root = _files(tmp_path, "dataset_coco.json", "dataset_flickr30k.json", "flickr30k-images/1.jpg")
    coco = find_source(layout="coco", root=root)
    assert (coco.annotations, coco.folder) == (root / "dataset_coco.json", root)
    flickr = find_source(layout="flickr30k", root=root)
    assert (flickr.annotations, flickr.folder) == (root / "dataset_flickr30k.json", root / "flickr30k-images")
    for source in (coco, flickr):
        reader = source.image_reader(exif=None)
        assert (reader.exif, reader.scale_deep, reader.background) == (False, False, None)


def test_find_source__statements(tmp_path: Path) -> None:
    root = _files(tmp_path, "nlvr/nlvr2/data/dev.json", "snli_ve_test.jsonl", "flickr30k-images/1.jpg")
    nlvr2 = find_source(layout="nlvr2", root=root)
    assert (nlvr2.annotations, nlvr2.folder) == (root / "nlvr" / "nlvr2" / "data", root)
    assert nlvr2.files() == [nlvr2.annotations / "dev.json"]
    assert nlvr2.file_of("test") == nlvr2.annotations / "test1.json"
    entailment = find_source(layout="snli_ve", root=root, classes=["yes", 0])
    assert (entailment.annotations, entailment.folder) == (root, root / "flickr30k-images")
    assert entailment.files() == [root / "snli_ve_test.jsonl"]
    assert entailment.classes == ("yes", "0")
    assert nlvr2.image_reader(exif=None).exif is entailment.image_reader(exif=None).exif is False
    one = find_source(layout="nlvr2", root=root / "nlvr" / "nlvr2" / "data" / "dev.json")
    assert (one.files(), one.folder) == ([nlvr2.annotations / "dev.json"], nlvr2.annotations)
    with pytest.raises(DataError, match=r"run.sh is a file: for data=nlvr2 give the folder that holds images/train/"):
        find_source(layout="nlvr2", root=_files(root, "run.sh") / "run.sh")
    for classes in ([], ["a"], ["a", "a"], [1, "1"]):
        with pytest.raises(ConfigError, match=r"data.classes=\["):
            find_source(layout="nlvr2", root=root, classes=classes)
    own = find_source(layout="jsonl", root=_files(tmp_path, "own/mine.jsonl") / "own")
    assert (own.annotations, own.folder) == (root / "own" / "mine.jsonl", root / "own")
    assert own.image_reader(exif=None).exif is True


def test_find_source__own(tmp_path: Path) -> None:
    root = _files(tmp_path, "mine.json", "table.csv", "photos/1.jpg")
    karpathy = find_source(layout="karpathy", root=root, images="photos")
    assert (karpathy.annotations, karpathy.folder) == (root / "mine.json", root / "photos")
    for given in ({"root": root}, {"root": root / "table.csv"}, {"root": None, "annotations": root / "table.csv"}):
        pairs = find_source(layout="pairs", **given)
        assert (pairs.annotations, pairs.folder) == (root / "table.csv", root)
        reader = pairs.image_reader(exif=None)
        assert (reader.exif, reader.scale_deep, reader.background) == (True, True, (255, 255, 255))
    assert pairs.image_reader(exif=False).exif is False


def test_find_source__table_in_a_folder_of_its_own(tmp_path: Path) -> None:
    root = _files(tmp_path, "lists/table.jsonl")
    assert find_source(layout="pairs", root=root, annotations="lists/table.jsonl").folder == root / "lists"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_find_source__nothing_there(tmp_path: Path, layout: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.root is not set"):
        find_source(layout=layout, root=None)
    with pytest.raises(DataError, match=rf"data.root {tmp_path}/none does not exist: for data={layout} it holds"):
        find_source(layout=layout, root=tmp_path / "none")
    with pytest.raises(DataError, match=r"data.annotations"):
        find_source(layout=layout, root=tmp_path)
    with pytest.raises(DataError, match=rf"{tmp_path}/other.json do not exist"):
        find_source(layout=layout, root=tmp_path, annotations="other.json")


def test_find_source__which_file(tmp_path: Path) -> None:
    root = _files(tmp_path, "a.csv", "b.jsonl")
    with pytest.raises(DataError, match=r"holds several tables \(a\.csv, b\.jsonl\): name one in data\.annotations"):
        find_source(layout="pairs", root=root)
    assert find_source(layout="pairs", root=root, annotations="b.jsonl").annotations == root / "b.jsonl"
