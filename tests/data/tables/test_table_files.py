"""The tables of a data set and their splits: named by the user, by their usual names, by folders; or asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mwa_lightning.data.sources import find_source
from mwa_lightning.data.tables.splitting import SPLITS
from mwa_lightning.data.tables.table_files import (
    TableFile,
    found_tables,
    given_tables,
    require_names,
    siblings,
    split_in_name,
    split_lists,
)
from mwa_lightning.errors import ConfigError, DataError

ROW = "image,caption\na.jpg,one\n"


def put(root: Path, *names: str, content: str = ROW) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def found(tables: list[TableFile], root: Path) -> set[tuple[str, str | None, str]]:
    return {(table.file.relative_to(root).as_posix(), table.split, table.prefix) for table in tables}


@given(
    split=st.sampled_from(sorted(SPLITS)),
    before=st.sampled_from(["", "my_", "coco-", "Flickr_8k.", "captions_"]),
    after=st.sampled_from(["", "_v2", "2017", ".clean", "-00000-of-00002", "Images"]),
)
def test_split_in_name(split: str, before: str, after: str) -> None:
    assert split_in_name(f"{before}{split}{after}") == SPLITS[split]
    assert split_in_name(f"{before}pairs{after}") is None
    assert split_in_name(f"{before}train_test{after}") is None


@pytest.mark.parametrize(
    ("names", "tables"),
    [
        (["pairs.csv", "config.json", "notes.txt"], {("pairs.csv", None, "")}),
        (["captions.txt"], {("captions.txt", None, "")}),
        (["train.csv"], {("train.csv", None, "")}),  # split by a hash
        (["test.csv"], {("test.csv", "test", "")}),
        (["train.csv", "valid.csv", "Test.csv"], {("train.csv", "train", ""), ("valid.csv", "val", ""),
                                                  ("Test.csv", "test", "")}),
        (["train.tsv", "dev.tsv"], {("train.tsv", "train", ""), ("dev.tsv", "val", "")}),
        (["train-00000-of-2.parquet", "train-00001-of-2.parquet", "test-00000-of-1.parquet"],
         {("train-00000-of-2.parquet", "train", ""), ("train-00001-of-2.parquet", "train", ""),
          ("test-00000-of-1.parquet", "test", "")}),
        (["train/metadata.jsonl", "validation/metadata.csv", "test/metadata.jsonl"],
         {("train/metadata.jsonl", "train", "train"), ("validation/metadata.csv", "val", "validation"),
          ("test/metadata.jsonl", "test", "test")}),
        (["a.jpg", "a.txt", "a.json", "b.jpg", "b.txt"], {(".", None, "")}),  # texts beside the images
        (["train/a.jpg", "train/a.txt"], {(".", None, "")}),
        (["captions.txt", "a.jpg", "a.txt", "readme.txt"], None),
    ],
)  # fmt: skip
def test_found_tables(tmp_path: Path, names: list[str], tables: set[tuple[str, str | None, str]] | None) -> None:
    put(tmp_path, *names)
    if tables is None:
        with pytest.raises(DataError, match=r"several tables \(captions\.txt, readme\.txt\): name one in data\.annot"):
            found_tables(tmp_path)
    else:
        assert found(found_tables(tmp_path), tmp_path) == tables


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a.csv", "train.csv"], "holds several tables (a.csv, train.csv): name one in data.annotations"),
        (["train.csv", "train_small.csv", "test.csv"], "holds several tables"),
        (["annotations/pairs.csv"], "there is annotations/pairs.csv: give data.annotations=annotations/pairs.csv, and"),
        (["cat/1.jpg", "dog/2.jpg"], "only folders (cat, dog), and their names are no captions"),
        ([], "should hold a table"),
    ],
)
def test_found_tables__none(tmp_path: Path, names: list[str], says: str) -> None:
    put(tmp_path, *names)
    with pytest.raises(DataError, match=re.escape(says)):
        found_tables(tmp_path)


@pytest.mark.parametrize(
    ("given", "tables"),
    [
        ("a.csv", {("a.csv", None, "")}),
        ("train.csv", {("train.csv", None, "")}),
        ("test.csv", {("test.csv", "test", "")}),
        (["train.csv", "val.csv"], {("train.csv", "train", ""), ("val.csv", "val", "")}),
        ({"train": "a.csv", "valid": "val.csv"}, {("a.csv", "train", ""), ("val.csv", "val", "")}),
        ({"Train": ["a.csv", "train.csv"]}, {("a.csv", "train", ""), ("train.csv", "train", "")}),
        (["lists/train.csv", "lists/test.csv"],
         {("lists/train.csv", "train", "lists"), ("lists/test.csv", "test", "lists")}),
        ("lists", {("lists/train.csv", "train", ""), ("lists/test.csv", "test", "")}),
    ],
)  # fmt: skip
def test_given_tables(tmp_path: Path, given: Any, tables: set[tuple[str, str | None, str]]) -> None:
    put(tmp_path, "a.csv", "train.csv", "val.csv", "test.csv", "lists/train.csv", "lists/test.csv")
    assert found(given_tables(tmp_path, given), tmp_path) == tables


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ("B.csv", DataError, "B.csv do not exist; there is b.csv: "),
        (["a.csv", "b.csv"], ConfigError, "the name of a.csv does not tell its split"),
        ({"foo": "a.csv"}, ConfigError, "'foo' is no split"),
        ({"train": "c.csv"}, DataError, "c.csv do not exist"),
    ],
)
def test_given_tables__refused(tmp_path: Path, given: Any, error: type[Exception], says: str) -> None:
    put(tmp_path, "a.csv", "b.csv")
    with pytest.raises(error, match=re.escape(says)):
        given_tables(tmp_path, given)


def test_siblings_and_lists(tmp_path: Path) -> None:
    put(tmp_path, "train.csv", "val.csv", "pairs.csv")
    assert siblings(tmp_path / "train.csv") == [tmp_path / "train.csv", tmp_path / "val.csv"]
    assert siblings(tmp_path / "pairs.csv") == []
    put(tmp_path, "F.trainImages.txt", "F.devImages.txt", "notes.txt", content="a.jpg\n")
    assert [each.split for each in split_lists(tmp_path / "pairs.csv")] == ["val", "train"]
    (tmp_path / "F.trainImages.txt").unlink()
    assert split_lists(tmp_path / "pairs.csv") == []


def test_require_names(tmp_path: Path) -> None:
    put(tmp_path, "train.csv", "val.csv")
    require_names(given_tables(tmp_path, ["train.csv", "val.csv"]))
    require_names(given_tables(tmp_path, "train.csv"))
    require_names([])
    with pytest.raises(
        DataError, match=r"val\.csv is of the split test by data\.annotations only, and shards keep no more"
    ):
        require_names(given_tables(tmp_path, {"train": "train.csv", "test": "val.csv"}))
    with pytest.raises(DataError, match="texts beside the images"):
        require_names([TableFile(tmp_path)])


def test_find_source__imagefolder_of_hugging_face(tmp_path: Path) -> None:
    for split in ("train", "test"):
        put(tmp_path, f"{split}/1.jpg")
        record = json.dumps({"file_name": "1.jpg", "text": f"a {split}"})
        put(tmp_path, f"{split}/metadata.jsonl", content=f"{record}\n")
    source = find_source(layout="pairs", root=tmp_path)
    splits = source.read(source.problems())
    assert {name: [picture.path for picture in split.pictures] for name, split in splits.items()} == {
        "train": [f"{tmp_path}/train/1.jpg"],
        "test": [f"{tmp_path}/test/1.jpg"],
    }
    assert sorted(source.files()) == [tmp_path / "test" / "metadata.jsonl", tmp_path / "train" / "metadata.jsonl"]
    assert source.file_of("test") == tmp_path / "test" / "metadata.jsonl"


def test_given_tables__a_folder_below_is_told_from_the_root(tmp_path: Path) -> None:
    """What is said of a folder without a table can be typed: it starts from `data.root`."""
    put(tmp_path, "deep/my x/a.csv", content="image,caption\n1.jpg,a dog\n")
    says = rf"^folder {tmp_path}/deep holds no table, .*: give \"data.annotations='deep/my x/a.csv'\", and"
    with pytest.raises(DataError, match=says):
        given_tables(tmp_path, "deep")
    assert given_tables(tmp_path, "deep/my x/a.csv")[0].file.is_file()


def test_require_names__what_is_said_works(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", "b.csv", "train.csv", "val.csv")
    with pytest.raises(DataError, match=r"write one table with a column split, or call the tables train\.csv, val"):
        require_names(given_tables(tmp_path, {"train": "a.csv", "val": "b.csv"}))
    require_names(given_tables(tmp_path, {"train": "train.csv", "val": "val.csv"}))
    require_names(given_tables(tmp_path, "a.csv"))
