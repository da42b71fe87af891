"""Tables are read in all their forms, split stably by a hash, and refused with the line that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mwa_lightning.data.pairs import read_pairs
from mwa_lightning.data.problems import Problems
from mwa_lightning.data.records import RetrievalSplit
from mwa_lightning.data.splitting import hash_share
from mwa_lightning.data.stores import PictureFolder
from mwa_lightning.data.table_files import TableFile
from mwa_lightning.errors import DataError

EXPECTED = {"train": [("x/a.jpg", "red, round"), ("x/a.jpg", "two")], "test": [("b.jpg", "three")]}


def _read(folder: Path, name: str, content: str) -> dict[str, RetrievalSplit]:
    path = folder / name
    path.write_bytes(content.encode())
    return _read_table(path)


def _read_table(path: Path, **options: Any) -> dict[str, RetrievalSplit]:
    problems = options.pop("problems", None) or Problems()
    return read_pairs([TableFile(path)], store=PictureFolder(path.parent), problems=problems, **options)


def _content(splits: dict[str, RetrievalSplit], folder: Path) -> dict[str, list[tuple[str, str]]]:
    return {
        name: [
            (str(Path(split.pictures[caption.image_index].path).relative_to(folder)), caption.text)
            for caption in split.captions
        ]
        for name, split in splits.items()
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'image,caption,split\nx/a.jpg,"red, round",train\nb.jpg,three,test\nx/a.jpg,two,train\n'),
        ("a.csv",
         '\ufeffsplit,Caption,Image_Path\r\ntrain,"red, round",x/a.jpg\r\ntest,three,b.jpg\r\ntrain,two,x/a.jpg'),
        ("a.csv", 'x/a.jpg,"red, round",train\n\nb.jpg,three,test\nx/a.jpg,two, train \n'),
        ("a.csv", 'image,note,caption,split\nx/a.jpg,n,"red, round",train\nb.jpg,,three,test\nx/a.jpg,,two,train\n'),
        ("a.tsv", "x/a.jpg\tred, round\ttrain\nb.jpg\tthree\ttest\nx/a.jpg\ttwo\ttrain\n"),
        ("a.jsonl", "\n".join(json.dumps(record) for record in [
            {"image": "x/a.jpg", "caption": "red, round", "split": "restval"},
            {"file_name": "b.jpg", "text": "three", "split": "test"},
            {"path": "./x/a.jpg", "sentence": "two", "split": "train", "more": 1},
        ])),
    ],
)  # fmt: skip
def test_read_pairs__forms(tmp_path: Path, name: str, content: str) -> None:
    splits = _read(tmp_path, name, content)
    assert _content(splits, tmp_path) == EXPECTED
    assert splits["train"].pictures.image_ids.tolist() == [0]
    assert splits["test"].pictures.image_ids.tolist() == [1]
    assert splits["train"].captions.caption_ids.tolist() == [0, 2]
    assert splits["train"].sample_id(1) == "x/a.jpg#2"


def test_read_pairs__absolute_path(tmp_path: Path) -> None:
    split = _read(tmp_path, "a.csv", "/elsewhere/a.jpg,one,test\n")["test"]
    assert split.pictures[0].path == "/elsewhere/a.jpg"


def test_read_pairs__split_by_hash(tmp_path: Path) -> None:
    names = [f"images/{i:05}.jpg" for i in range(4000)]
    lines = [f"{name},caption {j}" for name in names for j in range(2)]
    splits = _read(tmp_path, "a.csv", "\n".join(lines))
    where = {name: split.name for split in splits.values() for name in split.pictures.names}
    assert sorted(where) == names  # each image in one split only
    counts = [len(splits[name].pictures) for name in ("train", "val", "test")]
    assert sum(counts) == 4000
    assert all(abs(count - wanted) < 60 for count, wanted in zip(counts, (3600, 200, 200), strict=True))
    assert len(splits["val"].captions) == 2 * counts[1]
    for name, split in where.items():
        share = hash_share(name)
        assert split == ("train" if share < 0.9 else "val" if share < 0.95 else "test")
    # others come and go, and each stays where it is
    fewer = _read(tmp_path, "b.csv", "\n".join(reversed(lines[: 2 * 1000])))
    assert all(where[name] == split.name for split in fewer.values() for name in split.pictures.names)


@given(st.integers(3, 40), st.integers(0, 1000))
def test_read_pairs__small_tables_have_all_splits(
    tmp_path_factory: pytest.TempPathFactory, count: int, start: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    splits = _read(folder, "small.csv", "\n".join(f"{start + i}.jpg,caption" for i in range(count)))
    assert sorted(splits) == ["test", "train", "val"]
    assert sum(len(split.pictures) for split in splits.values()) == count
    assert max(map(hash_share, splits["train"].pictures.names)) < min(map(hash_share, splits["val"].pictures.names))
    assert max(map(hash_share, splits["val"].pictures.names)) < min(map(hash_share, splits["test"].pictures.names))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "", "lists no pictures"),
        ("a.csv", "image,caption\n", "lists no pictures"),
        ("a.csv", "a.jpg,one\nb.jpg,two, and more\n", "line 2 has 3 cells where 2 are wanted"),
        ("a.csv", "a.jpg,one,two,three\n", "has no header, and columns 1, 2, 3, 4: say which"),
        ("a.csv", "a.jpg\n", "no columns are seen in 'a.jpg'"),
        (
            "a.csv",
            "a.jpg,red, round\n",
            "has no header, and columns 1, 2, 3: say which holds the captions by data.columns=",
        ),
        (
            "a.csv",
            "image,caption,split\na.jpg,one,round\n",
            "(a.jpg) is of the split 'round': write train, val or test",
        ),
        ("a.csv", "a.jpg,one\n,two\n", "line 2 lacks the path"),
        ("a.csv", "a.jpg,one\nb.jpg, . \n", "line 2 (b.jpg): the caption has no words ('.')"),
        ("a.csv", "a.jpg,one\nb.jpg,  \n", "line 2 (b.jpg) lacks a caption"),
        ("a.csv", 'a.jpg,"one" more\n', "line 1 has more after the closing quote"),
        ("a.csv", 'a.jpg,"one\n', "line 1 opens a quote that nothing closes"),
        ("a.jsonl", '{"image": "a.jpg", "caption": "one"}\n{"image" 5}\n', "line 2 column 10"),
        ("a.jsonl", "[1, 2]\n", "entry 1 is no object"),
        ("a.jsonl", '{"image": "a.jpg"}\n', "has the columns image: say which holds the captions by data.columns="),
        ("a.jsonl", '{"caption": "one"}\n', "has the columns caption: say which holds the pictures by data.columns="),
        ("a.jsonl", '{"image": "a.jpg", "caption": "one"}\n{"image": "b.jpg"}\n', "line 2 (b.jpg) lacks a caption"),
        ("a.jsonl", '{"image": null, "caption": "one"}\n', "line 1 lacks the path"),
        (
            "a.jsonl",
            '{"image": "a", "caption": "one", "split": "val"}\n{"image": "b", "caption": "one"}\n',
            "line 2 (b) lacks the split that others have",
        ),
    ],
)
def test_read_pairs__unusable(tmp_path: Path, name: str, content: str, says: str) -> None:
    with pytest.raises(DataError) as caught:
        _read(tmp_path, name, content)
    assert says in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_pairs__collects_every_problem(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption,split\na.jpg,one,train\nb.jpg,,train\nc.jpg,two\nd.jpg,three,tset\n")
    problems = Problems(collect=True)
    splits = _read_table(tmp_path / "a.csv", problems=problems)
    assert sorted(problem.kind for problem in problems.found) == [
        "caption without words",
        "unusable entry",
        "unusable row",
    ]
    assert _content(splits, tmp_path) == {"train": [("a.jpg", "one")]}
