"""The annotations of a published data set are found under the names that its copies have, in the usual places."""

from __future__ import annotations

from pathlib import Path

import pytest

from mwa_lightning.data.layouts import LAYOUTS
from mwa_lightning.data.sources import find_source
from mwa_lightning.errors import DataError


def files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


FOUND = [
    ("coco", ["dataset_coco.json"], set()),
    ("coco", ["annotations/dataset_coco.json", "annotations/captions_train2017.json"], set()),
    ("coco", ["karpathy_splits/dataset_coco.json"], set()),
    ("coco", ["annotations/captions_train2017.json", "annotations/captions_val2017.json"], {"train", "val"}),
    ("coco", ["captions_val2014.json", "train2014/x.json"], {"val"}),
    ("coco", ["annotations/coco_karpathy_test.json", "annotations/captions_val2014.json"], {"test"}),
    ("coco", ["annotations/coco_karpathy_train.json", "annotations/coco_karpathy_val.json"], {"train", "val"}),
    ("coco", ["coco/annotations/coco_karpathy_train.json"], {"train"}),  # LAVIS's cache
    ("coco", ["data/coco_train.json", "data/coco_val.json", "data/coco_test.json"], {"train", "val", "test"}),
    ("flickr30k", ["annotations/flickr30k_test.json"], {"test"}),
    ("flickr30k", ["flickr30k/annotations/train.json", "flickr30k/annotations/val.json"], {"train", "val"}),
    ("nlvr2", ["nlvr/nlvr2/data/dev.json"], {"val"}),
    ("nlvr2", ["data/train.json", "data/dev.json", "data/test1.json"], {"train", "val", "test"}),
    ("nlvr2", ["annotations/nlvr_train.json", "annotations/nlvr_dev.json"], {"train", "val"}),
    ("nlvr2", ["nlvr/annotations/train.json", "nlvr/annotations/test.json"], {"train", "test"}),
    ("snli_ve", ["snli_ve_train.jsonl"], {"train"}),
    ("snli_ve", ["annotations/ve_train.json", "annotations/ve_dev.json"], {"train", "val"}),
    ("snli_ve", ["snli/annotations/ve_test.json"], {"test"}),
]


@pytest.mark.parametrize(("layout", "names", "splits"), FOUND)
def test_find_source__annotations_by_their_usual_names(
    tmp_path: Path, layout: str, names: list[str], splits: set[str]
) -> None:
    root = files(tmp_path, *names, "notes.json", ".hidden/dataset_coco.json")
    for given in (None, LAYOUTS[layout].annotations):
        source = find_source(layout=layout, root=root, annotations=given)
        assert source.split_files().keys() == splits
        assert source.files() == ([root / name for name in names][: len(splits)] if splits else [root / names[0]])


@pytest.mark.parametrize("given", ["annotations", "annotations/captions_val2017.json"])
def test_find_source__annotations_that_are_named(tmp_path: Path, given: str) -> None:
    """A file of one split stands for those that belong to it; others in its folder count for nothing."""
    root = files(tmp_path, "dataset_coco.json", *(f"annotations/captions_{s}2017.json" for s in ("train", "val")))
    source = find_source(layout="coco", root=root, annotations=given)
    assert [file.name for file in source.files()] == ["captions_train2017.json", "captions_val2017.json"]
    files(root, *(f"annotations/captions_{split}2014.json" for split in ("train", "val")))
    one = find_source(layout="coco", root=root, annotations="annotations/captions_val2014.json")
    assert [file.name for file in one.files()] == ["captions_train2014.json", "captions_val2014.json"]


def test_find_source__two_sets_that_divide_the_images_differently(tmp_path: Path) -> None:
    names = [f"annotations/captions_{split}{year}.json" for year in (2014, 2017) for split in ("train", "val")]
    root = files(tmp_path, *names)
    with pytest.raises(DataError, match=r"captions_train2017.json and captions_train2014.json, which divide") as caught:
        find_source(layout="coco", root=root)
    said = str(caught.value).rpartition("data.annotations=")[2]
    assert find_source(layout="coco", root=root, annotations=said).split_files().keys() == {"train", "val"}


def test_find_source__folder_that_holds_other_files(tmp_path: Path) -> None:
    root = files(tmp_path, "annotations/instances_val2017.json")
    with pytest.raises(DataError) as caught:
        find_source(layout="nlvr2", root=root, annotations="annotations")
    assert f"folder {root}/annotations holds none of {{train,val,test}}.json" in str(caught.value)
    assert "but instances_val2017.json" in str(caught.value)
    with pytest.raises(DataError, match=r"instances_val2017"):
        find_source(layout="coco", root=root)
