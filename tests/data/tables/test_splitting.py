"""Samples go to the split that the table names, or to one by a hash that others do not change."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.tables.splitting import assign_splits, hash_share, split_by_hash, split_named
from mwa_lightning.errors import DataError


@given(paths=st.sets(st.text("abcdef/", min_size=1), min_size=3, max_size=60), data=st.data())
def test_split_by_hash__every_part_has_some_in_the_order_of_the_hash(paths: set[str], data: st.DataObject) -> None:
    splits = split_by_hash(paths)
    assert splits == split_by_hash(data.draw(st.permutations(sorted(paths))))
    parts = [[hash_share(path) for path in paths if splits[path] == name] for name in ("train", "val", "test")]
    assert all(parts)
    assert max(parts[0]) <= min(parts[1]) <= max(parts[1]) <= min(parts[2])


def test_split_by_hash__others_move_none() -> None:
    paths = [f"{i}.jpg" for i in range(1000)]
    few = split_by_hash(paths[:500])
    many = split_by_hash(paths)
    assert {path: many[path] for path in few} == few


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (["train", "Train", "TRAIN", "training", "trn", "train2014", " train ", "restval"], "train"),
        (["val", "valid", "Validation", "DEV", "eval", "val2014", "validation_2017", "development"], "val"),
        (["test", "Testing", "tst", "test2017", "TEST"], "test"),
        (["", "0", "1", "fold1", "trainval", "testb", None, 1, True, ["train"]], None),
    ],
)
def test_split_named(names: list[Any], split: str | None) -> None:
    assert {split_named(name) for name in names} == {split}


def test_assign_splits__named() -> None:
    rows = [("1", "train", "a"), ("2", "restval", "b"), ("3", "dev", "a"), ("4", "Valid", "c"), ("5", "test2017", "d")]
    assert assign_splits(rows, Problems()) == ["train", "train", "val", "val", "test"]


def test_assign_splits__some_are_missing() -> None:
    with pytest.raises(DataError, match=r"^line 2 lacks the split that others have"):
        assign_splits([("line 1", "train", "a"), ("line 2", None, "b")], Problems())
    problems = Problems(collect=True)
    assert assign_splits([("1", None, "a"), ("2", "val", "b"), ("3", None, "c")], problems) == [None, "val", None]
    assert len(problems.found) == 2


def test_assign_splits__share_of_train_becomes_val() -> None:
    rows = [(str(i), "test" if i >= 200 else "train", f"{i // 2}.jpg") for i in range(210)]
    splits = assign_splits(rows, Problems(), val_share=0.1)
    by_image = {image: split for (_, _, image), split in zip(rows, splits, strict=True)}
    assert [by_image[image] for _, _, image in rows] == splits  # an image is in one split only
    assert {image for image, split in by_image.items() if split == "val"} == {
        f"{i}.jpg" for i in range(100) if hash_share(f"{i}.jpg") >= 0.9
    }
    assert splits.count("test") == 10
    two = [("1", "train", "a"), ("2", "train", "b")]
    assert sorted(assign_splits(two, Problems(), val_share=0.001)) == ["train", "val"]
    with pytest.raises(DataError, match=r"data\.val_share: the annotations have a val split of their own"):
        assign_splits([*two, ("3", "dev", "c")], Problems(), val_share=0.1)
