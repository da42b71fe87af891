"""Tables are read in all their forms, split stably by a hash, and refused with the line that is wrong."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mwa_lightning.cli.config.overrides import parse_override
from mwa_lightning.data.annotations.pairs import read_pairs
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.samples.records import RetrievalSplit
from mwa_lightning.data.sources import find_source
from mwa_lightning.data.storage.stores import PictureFolder
from mwa_lightning.data.tables.splitting import hash_share
from mwa_lightning.data.tables.table_files import TableFile, given_tables
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
        ("a.csv", "", "no images are listed in"),
        ("a.csv", "image,caption\n", "no images are listed in"),
        ("a.csv", "a.jpg,one\nb.jpg,two, and more\n", "line 2 has 3 cells, the table has 2 columns"),
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
        ("a.jsonl", '{"caption": "one"}\n', "has the columns caption: say which holds the images by data.columns="),
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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'image,caption\na.jpg,"[""one"", ""two""]"\n'),
        ("a.csv", "image,caption\na.jpg,\"['one', 'two']\"\n"),  # as pandas writes a column of lists
        ("a.csv", "image,caption_0,caption_1,caption_2\na.jpg,one,two,\n"),
        ("a.csv", "image;comment\na.jpg#0;one\na.jpg#1;two\n"),
        ("a.tsv", "one\ta.jpg\ntwo\ta.jpg\n"),
        ("a.jsonl", json.dumps({"image": "a.jpg", "captions": ["one", "two"]})),
        ("a.jsonl", json.dumps({"image": {"path": "a.jpg"}, "sentences": [{"raw": "one"}, {"raw": "two"}]})),
        ("a.json", json.dumps({"a.jpg": ["one", "two"]})),
        ("a.csv", "image,caption\nfile://a.jpg,one\n./x/../a.jpg ,two\n"),
    ],
)
def test_read_pairs__several_captions_of_a_picture(tmp_path: Path, name: str, content: str) -> None:
    (split,) = _read(tmp_path, name, content).values()
    assert [picture.name for picture in split.pictures] == ["a.jpg"]
    assert list(split.texts) == ["one", "two"]


@pytest.mark.parametrize("caption", ["[man] walks", "[laughs]", "[1, 2]", "[[x", '["a'])
def test_read_pairs__brackets_that_are_no_list(tmp_path: Path, caption: str) -> None:
    (split,) = _read(tmp_path, "a.jsonl", json.dumps({"image": "a.jpg", "caption": caption})).values()
    assert list(split.texts) == [caption]


def test_read_pairs__lists_without_commas_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2 \(a\.jpg\) has a list of captions without commas"):  # as NumPy writes
        _read(tmp_path, "a.csv", "image,caption\na.jpg,\"['one' 'two']\"\n")


def test_read_pairs__lists_of_splits_beside_it(tmp_path: Path) -> None:
    for split, names in (("train", "a.jpg\nb.jpg\n"), ("dev", "c\n"), ("test", "d.jpg\n")):
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_text(names)
    problems = Problems()
    (tmp_path / "t.token.txt").write_text("".join(f"{name}.jpg#{i}\tx{i}\n" for name in "abcde" for i in range(2)))
    splits = _read_table(tmp_path / "t.token.txt", problems=problems)
    assert {name: list(split.pictures.names) for name, split in splits.items()} == {
        "train": ["a.jpg", "b.jpg"],
        "val": ["c.jpg"],
        "test": ["d.jpg"],
    }
    assert "left out 1 image in none of them" in problems.notes[0]


def test_read_pairs__folders_named_after_the_splits(tmp_path: Path) -> None:
    rows = "".join(f"{split}/{i}.jpg,x\n" for split in ("train2014", "val2014") for i in range(3))
    splits = _read(tmp_path, "metadata.csv", f"file_name,caption\n{rows}")
    assert {name: len(split.pictures) for name, split in splits.items()} == {"train": 3, "val": 3}


def test_read_pairs__a_table_that_has_siblings_says_so(tmp_path: Path) -> None:
    for name in ("train.csv", "val.csv", "test.csv"):
        (tmp_path / name).write_text("image,caption\na.jpg,x\nb.jpg,x\nc.jpg,x\n")
    problems = Problems()
    _read_table(tmp_path / "train.csv", problems=problems)
    (note,) = problems.notes
    assert "data.annotations=[test.csv,train.csv,val.csv]" in note
    splits = read_pairs(
        given_tables(tmp_path, ["train.csv", "val.csv"]), store=PictureFolder(tmp_path), problems=problems
    )
    assert {name: len(split) for name, split in splits.items()} == {"train": 3, "val": 3}
    assert len(problems.notes) == 1


BAD = "image,caption,split\na.jpg,one,train\nb.jpg,.,train\nc.jpg\nd.jpg,four,train\ne.jpg,,test\nf.jpg,six,test\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"skip_rows": 0}, "line 4 has 1 cell, the table has 3 columns: correct it; data.skip_bad_rows=N "
                           "data.skip_bad_rows_in_eval=true leaves out up to N such rows"),
        ({"skip_rows": 3}, "line 4 has 1 cell, "),  # nothing tells of which split it is
        ({"skip_rows": 2, "skip_in_evaluation": True}, "there are more such rows than data.skip_bad_rows=2 leaves out"),
        ({"skip_rows": 9, "skip_in_evaluation": True}, ""),
    ],
)  # fmt: skip
def test_read_pairs__bad_rows_are_left_out_where_asked(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    (tmp_path / "a.csv").write_text(BAD)
    problems = Problems(**options)
    if says:
        with pytest.raises(DataError) as caught:
            _read_table(tmp_path / "a.csv", problems=problems)
        assert says in str(caught.value)
        return
    assert _content(_read_table(tmp_path / "a.csv", problems=problems), tmp_path) == {
        "train": [("a.jpg", "one"), ("d.jpg", "four")],
        "test": [("f.jpg", "six")],
    }
    assert [line.partition(": ")[2][:6] for line in problems.skipped] == ["line 4", "line 3", "line 6"]


def test_read_pairs__rows_of_evaluation_stay_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption,split\na.jpg,one,train\nb.jpg,two,test\n,x,test\nc.jpg,,test\n")
    for skip, says in ((False, "line 4 lacks the path"), (True, "")):
        problems = Problems(collect=True, skip_rows=9, skip_in_evaluation=skip)
        splits = _read_table(tmp_path / "a.csv", problems=problems)
        assert len(problems.found) == (0 if skip else 2)
        assert len(problems.skipped) == (2 if skip else 0)
        assert _content(splits, tmp_path) == {"train": [("a.jpg", "one")], "test": [("b.jpg", "two")]}
        assert says in "".join(problem.message for problem in problems.found)


def test_read_pairs__table_of_another_split_than_its_column(tmp_path: Path) -> None:
    for name in ("train.csv", "val.csv"):
        (tmp_path / name).write_text("image,caption,split\na.jpg,x,train\n")
    with pytest.raises(DataError, match=r"val\.csv: line 2 \(a\.jpg\) is of the split 'train' in the table of val"):
        read_pairs(given_tables(tmp_path, ["train.csv", "val.csv"]), store=PictureFolder(tmp_path), problems=Problems())
    alone = read_pairs(given_tables(tmp_path, "val.csv"), store=PictureFolder(tmp_path), problems=Problems())
    assert list(alone) == ["train"]  # its column says more than its name


def test_read_pairs__texts_beside_pictures(tmp_path: Path) -> None:
    for name, text in (("train/a.txt", "one\ntwo\n"), ("train/b.caption", "three"), ("val/c.txt", "un café")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode("cp1252"))
        (tmp_path / name).with_suffix(".JPG").touch()
    (tmp_path / "val" / "d.png").touch()
    (tmp_path / "val" / "d.json").write_text('{"caption": "four", "url": "http://x"}')  # img2dataset's
    (tmp_path / "val" / "e.png").touch()
    (tmp_path / "val" / "f.png").touch()
    (tmp_path / "val" / "f.txt").write_text("\n")
    with pytest.raises(DataError, match=r"val/f\.txt has no caption"):
        read_pairs([TableFile(tmp_path)], store=PictureFolder(tmp_path), problems=Problems())
    problems = Problems(skip_rows=1, skip_in_evaluation=True)
    splits = read_pairs([TableFile(tmp_path)], store=PictureFolder(tmp_path), problems=problems)
    assert _content(splits, tmp_path) == {
        "train": [("train/a.JPG", "one"), ("train/a.JPG", "two"), ("train/b.JPG", "three")],
        "val": [("val/c.JPG", "un café"), ("val/d.png", "four")],
    }
    assert problems.notes[-1].endswith("left out 1 image without a text beside")


@pytest.mark.parametrize("options", [{"annotations": "my lists/train.csv"}, {"root": "my lists/train.csv"}])
def test_read_pairs__what_is_said_of_siblings_works(tmp_path: Path, options: dict[str, str]) -> None:
    """Relative to the folder of the data set, or to that of a table which was given in its place."""
    (tmp_path / "my lists").mkdir()
    for name in ("train.csv", "val.csv"):
        (tmp_path / "my lists" / name).write_text("image,caption\na.jpg,x\nb.jpg,x\nc.jpg,x\n")
    root = tmp_path / options.get("root", ".")
    source = find_source(layout="pairs", root=root, annotations=options.get("annotations"))
    problems = Problems()
    before = {picture.path for split in source.read(problems).values() for picture in split.pictures}
    words = shlex.split(problems.notes[0].partition("give ")[2])
    said = {override.key_or_group: override.value() for override in map(parse_override, words)}
    followed = find_source(layout="pairs", root=said["data.root"], annotations=said["data.annotations"])
    splits = followed.read(problems)
    assert {name: len(split) for name, split in splits.items()} == {"train": 3, "val": 3}
    assert {picture.path for picture in splits["train"].pictures} == before


def test_read_pairs__a_row_without_an_image_is_of_its_split(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption,split\na.jpg,one,train\n,two,train\nhttp://x/a.jpg,three,train\n")
    problems = Problems(skip_rows=2)
    assert len(_read_table(tmp_path / "a.csv", problems=problems)["train"]) == 1
    assert len(problems.skipped) == 2
