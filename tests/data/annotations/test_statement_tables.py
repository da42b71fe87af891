"""One's own statements: forms of tables, columns, classes, splits, and what is refused with one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mwa_lightning.data.annotations.statement_tables import read_statements
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.samples.statements import StatementSplit
from mwa_lightning.data.storage.stores import PictureFolder
from mwa_lightning.data.tables.splitting import hash_share
from mwa_lightning.data.tables.table_files import TableFile
from mwa_lightning.errors import DataError


def sample(image: Any = "a.jpg", label: Any = "yes", text: Any = "a dog", **more: Any) -> dict[str, Any]:
    return {"images" if isinstance(image, list) else "image": image, "text": text, "label": label, **more}


def write(folder: Path, records: list[Any], name: str = "mine.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / name


def read(folder: Path, records: list[Any], **options: Any) -> dict[str, StatementSplit]:
    return read_table(write(folder, records), **options)


def read_table(*files: Path | TableFile, **options: Any) -> dict[str, StatementSplit]:
    tables = [file if isinstance(file, TableFile) else TableFile(file) for file in files]
    options = {"problems": Problems(), "store": PictureFolder(tables[0].file.parent), **options}
    return read_statements(tables, **options)


def test_read_statements__one_image(tmp_path: Path) -> None:
    splits = read(
        tmp_path,
        [
            sample("x/a.jpg", "yes", split="train"),
            sample("./x/a.jpg", "no", "a cat", split="train", identifier="mine"),
            sample("b.jpg", "yes", split="validation"),
            sample(["c.jpg"], "no", split="test"),
        ],
    )
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "val": 1, "test": 1}
    train = splits["train"]
    assert train.classes == ("no", "yes")
    assert train.statements.labels.tolist() == [1, 0]
    assert list(train.statements.identifiers) == ["mine-1", "mine"]
    assert train.pictures[0].path == str(tmp_path / "x" / "a.jpg")
    assert len(train.pictures) == 1
    assert train.images_a_sample == 1
    assert train.groups is None
    assert [splits[name].pictures.image_ids.tolist() for name in ("train", "val", "test")] == [[0], [1], [2]]


def test_read_statements__three_images(tmp_path: Path) -> None:
    images = [["a.jpg", "b.jpg", "a.jpg"], ["c.jpg", "b.jpg", "d.jpg"]]
    splits = read(tmp_path, [sample(paths, i, split="train") for i, paths in enumerate(images)])
    assert splits["train"].images_a_sample == 3
    assert splits["train"].statements.image_index.tolist() == [[0, 1, 0], [2, 1, 3]]


@pytest.mark.parametrize(
    ("labels", "given", "classes", "numbers"),
    [
        (["b", "a", "c", "a"], None, ("a", "b", "c"), [1, 0, 2, 0]),
        ([10, 2, -1, 2], None, ("-1", "2", "10"), [2, 1, 0, 1]),
        ([True, False, True, False], None, ("False", "True"), [1, 0, 1, 0]),
        (["b", "a", "b", "a"], ("b", "c", "a"), ("b", "c", "a"), [0, 2, 0, 2]),
        ([1, 0, 1, 0], ("1", "0"), ("1", "0"), [0, 1, 0, 1]),
        ([1, "x", 1, "x"], None, ("1", "x"), [0, 1, 0, 1]),
    ],
)
def test_read_statements__classes(
    tmp_path: Path, labels: list[Any], given: tuple[str, ...] | None, classes: tuple[str, ...], numbers: list[int]
) -> None:
    splits = read(tmp_path, [sample(label=label, split="train") for label in labels], classes=given)
    assert splits["train"].classes == classes
    assert splits["train"].statements.labels.tolist() == numbers


@pytest.mark.parametrize("paired", [False, True])
def test_read_statements__split_by_hash(tmp_path: Path, paired: bool) -> None:
    names = [f"{i}.jpg" for i in range(400)]
    images = [[name, f"other-{name}"] if paired else name for name in names]
    splits = read(tmp_path, [sample(image, i) for image in images for i in range(2)])
    sizes = {name: len(split) for name, split in splits.items()}
    assert sum(sizes.values()) == 800
    assert 680 < sizes["train"] < 760
    assert min(sizes["val"], sizes["test"]) >= 20
    for split in splits.values():  # the two statements about the same images are together
        assert len(split) == 2 * len(set(map(tuple, split.statements.image_index.tolist())))
    if not paired:
        assert max(map(hash_share, splits["train"].pictures.names)) < 0.90
        assert min(map(hash_share, splits["test"].pictures.names)) >= 0.95


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([sample(["a", "b"]), sample(["c"])], "line 2 has 1 image, "),
        ([sample(["a", ""])], "line 1 lacks the path of an image"),
        ([sample(5)], "line 1 lacks the path of an image"),
        ([sample([])], "line 1 lacks the path of an image"),
        (
            [{"text": "a", "label": 1}],
            "has no column for image, only 'text', 'label': say which holds what by data.columns='{image",
        ),
        ([{"image": "a.jpg", "foo": 1}], "no column for text and label"),
        ([{"image": "a.jpg", "question": "?", "answers": ["x"]}], "is questions and answers (VQA)"),
        ([sample(label=0.5)], "line 1 has the label 0.5, which is neither a word nor a whole number"),
        ([sample(label=[1])], "line 1 has the label [1], which is neither a word nor a whole number"),
        ([sample(label=10**30)], f"line 1 has the label {10**30}, which is neither a word nor a"),
        ([sample(label=None)], "line 1 lacks a label (label)"),
        ([sample(label=float("nan"))], "line 1 lacks a label (label)"),
        ([sample(label=" ")], "line 1 lacks a label (label)"),
        ([sample(label="nan")], "line 1 lacks a label (label)"),
        ([sample(), sample(label="no", text="  ")], "line 2 (mine-2): the statement has no words"),
        ([sample(), sample(label="no", text=None)], "line 2 (mine-2) lacks a statement"),
        ([sample(identifier="x"), sample(label="no", identifier="x")], "mine.jsonl: line 1: give each sample its own"),
        ([sample(split="tset")], "line 1 is of the split 'tset'"),
        ([sample(split=["val"])], "line 1 is of the split ['val']"),
        ([sample(split="val"), sample(label="no")], "line 2 lacks the split that others have"),
        ([sample(), sample()], "is 'yes': give statements of two"),
        ([], "no statements are listed in"),
        ([[1]], "entry 1 is no object"),
        ([sample(), [1]], "line 2 is no object"),
    ],
)
def test_read_statements__unusable(tmp_path: Path, records: list[Any], says: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, records)
    assert says in str(caught.value)
    assert str(tmp_path / "mine.jsonl") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_statements__label_outside_the_given_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1 \(mine-1\) has the label 'yes', which is none of the classes a, b"):
        read(tmp_path, [sample()], classes=("a", "b"))


def test_read_statements__collects_every_problem(tmp_path: Path) -> None:
    problems = Problems(collect=True)
    records = [sample("a"), sample("b", "no", " "), sample(["c", "d"], "no"), sample("e", None), 7, sample("f", "no")]
    splits = read(tmp_path, records, problems=problems)
    assert sorted(problem.kind for problem in problems.found) == [
        "another number of images",
        "no label",
        "statement without words",
        "unusable entry",
    ]
    assert sum(map(len, splits.values())) == 2


def test_read_statements__many_labels_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"30 rows have 30 different labels, too many for classes"):
        read(tmp_path, [sample(label=f"answer {i}") for i in range(30)])


# What people have

CELLS = [["a.jpg", "A dog.", "yes", "train"], ["b.jpg", "A cat.", "no", "val"], ["c.jpg", "A man.", "yes", "test"]]


def table(folder: Path, header: str, rows: list[list[str]], *, name: str = "mine.csv", delimiter: str = ",") -> Path:
    lines = [header.replace(",", delimiter), *(delimiter.join(row) for row in rows)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [
        ("image,text,label,split", ","),
        ("Image Path,Sentence,Gold_Label,Split", ";"),
        ("filename,statement,answer,subset", "\t"),
        ("img,hypothesis,class,SPLIT", "|"),
        ("photo,claim,target,split", ","),
    ],
)
def test_read_statements__names_of_columns(tmp_path: Path, header: str, delimiter: str) -> None:
    problems = Problems(collect=True)
    splits = read_table(table(tmp_path, header, CELLS, delimiter=delimiter), problems=problems)
    assert problems.found == []
    assert {name: list(split.texts) for name, split in splits.items()} == {
        "train": ["A dog."],
        "val": ["A cat."],
        "test": ["A man."],
    }
    assert splits["train"].classes == ("no", "yes")
    assert f"image in {header.split(',')[0]!r}" in problems.read_as[0]


@pytest.mark.parametrize(
    ("header", "order"),
    [
        ("image_0,image_1", [0, 1]),
        ("image1,image2", [0, 1]),
        ("right,left", [1, 0]),
        ("Left Image,Right Image", [0, 1]),
        ("img_b,img_a", [1, 0]),
        ("image_left_path,image_right_path", [0, 1]),
    ],
)
def test_read_statements__a_column_for_each_image(tmp_path: Path, header: str, order: list[int]) -> None:
    rows = [[f"{i}-0.png", f"{i}-1.png", "both show dogs", str(i % 2)] for i in range(4)]
    splits = read_table(table(tmp_path, f"{header},sentence,label", rows))
    split = splits["train"]
    assert split.images_a_sample == 2
    names = [[split.pictures.names[place] for place in split.statements[i].image_index] for i in range(len(split))]
    assert all([name[-5] for name in pair] == [str(side) for side in order] for pair in names)


def test_read_statements__lists_of_images_in_a_cell(tmp_path: Path) -> None:
    rows = [['"[""a.jpg"", ""b.jpg""]"', "A dog.", "yes"], ["\"['c.jpg', 'd.jpg']\"", "A cat.", "no"]]
    splits = read_table(table(tmp_path, "images,text,label", rows))
    names = sorted(name for split in splits.values() for name in split.pictures.names)
    assert names == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    one = read_table(table(tmp_path, "image,text,label", [["[1].jpg", "A dog.", "yes"], ["b.jpg", "A dog.", "no"]]))
    assert sorted(name for split in one.values() for name in split.pictures.names) == ["[1].jpg", "b.jpg"]


def test_read_statements__columns_that_are_named(tmp_path: Path) -> None:
    file = table(tmp_path, "foto1,foto2,frage,antwort", [["a", "b", "A ?", "ja"], ["c", "d", "B ?", "nein"]])
    columns = {"image": ["foto2", "foto1"], "text": "frage", "label": "antwort"}
    split = read_table(file, columns=columns)["train"]
    assert list(split.pictures.names) in (["b", "a"], ["d", "c"])
    with pytest.raises(DataError, match=r"has no column 'foto3': take one of 'foto1', 'foto2', 'frage', 'antwort'"):
        read_table(file, columns={**columns, "image": "foto3"})
    records = [{"image": f"{i}.jpg", "question": "A dog ?", "answer": "yes" if i % 2 else "no"} for i in range(4)]
    (tmp_path / "vqa.json").write_text(json.dumps(records))
    with pytest.raises(DataError, match=r"VQA"):
        read_table(tmp_path / "vqa.json")
    assert read_table(tmp_path / "vqa.json", columns={"text": "question", "label": "answer"})["train"].classes == (
        "no",
        "yes",
    )


def test_read_statements__no_header_is_named_and_no_row_is_taken_for_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"names no columns: write a first line of their names, such as image,text"):
        read_table(table(tmp_path, "a.jpg,A dog.,yes,train", CELLS))


def test_read_statements__lists_of_others(tmp_path: Path) -> None:
    """BLIP's NLVR2, ALBEF's SNLI-VE and e-SNLI-VE can be had as one's own tables too."""
    pair = [{"sentence": "Two dogs.", "label": label, "images": ["a.png", "b.png"]} for label in ("True", "False")]
    one = [{"image": "7", "sentence": "A dog.", "label": label} for label in ("neutral", "entailment")]
    (tmp_path / "nlvr.json").write_text(json.dumps(pair))
    (tmp_path / "ve.json").write_text(json.dumps(one))
    assert read_table(tmp_path / "nlvr.json")["train"].images_a_sample == 2
    assert read_table(tmp_path / "ve.json")["train"].pictures.names[0] == "7"
    rows = [
        [str(i), f"{7 + i}{suffix}", "A dog", label, "because"]
        for i, (suffix, label) in enumerate([("", "x"), (".jpg", "y")])
    ]
    esnli = table(tmp_path, ",Flickr30kID,hypothesis,gold_label,explanation", rows)
    for name in ("7.jpg", "8.jpg"):
        (tmp_path / "flickr30k-images").mkdir(exist_ok=True)
        (tmp_path / "flickr30k-images" / name).touch()
    paths = sorted(picture.path for split in read_table(esnli).values() for picture in split.pictures)
    assert paths == [str(tmp_path / "flickr30k-images" / name) for name in ("7.jpg", "8.jpg")]


def test_read_statements__tables_of_the_splits(tmp_path: Path) -> None:
    tables = [
        TableFile(
            table(
                tmp_path,
                "image,text,label",
                [[f"{split}{i}.jpg", "A dog.", str(i)] for i in (0, 1)],
                name=f"{split}.csv",
            ),
            split,
        )
        for split in ("train", "val", "test")
    ]
    splits = read_table(*tables)
    assert {name: list(split.pictures.names) for name, split in splits.items()} == {
        name: [f"{name}0.jpg", f"{name}1.jpg"] for name in ("train", "val", "test")
    }
    assert list(splits["val"].statements.identifiers) == ["val-2", "val-3"]
    shared = read_table(*tables[:1], val_share=0.5)
    assert {name: len(split) for name, split in shared.items()} == {"train": 1, "val": 1}


def test_read_statements__bad_rows_are_left_out_if_asked(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jpg").touch()
    records = [
        sample("a.jpg", "yes"),
        sample("b.jpg", "no"),
        sample("c.jpg", 0.5),
        sample("a.jpg", None),
        sample("a.jpg", text="-"),
    ]
    train = [{**record, "split": "train"} for record in records]
    problems = Problems(skip_rows=3)
    splits = read(tmp_path, train, problems=problems)
    assert len(splits["train"]) == 2
    assert len(problems.skipped) == 3
    with pytest.raises(DataError, match=r"data.skip_bad_rows=2"):
        read(tmp_path, train, problems=Problems(skip_rows=2))
    with pytest.raises(DataError, match=r"data.skip_bad_rows_in_eval=true"):
        read(tmp_path, [{**record, "split": "val"} for record in records], problems=Problems(skip_rows=9))


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([float("nan"), float("inf"), 10**400, "", "\0", "\ud800", "[1", "a"]),
    lambda value: st.lists(value, max_size=2) | st.dictionaries(st.sampled_from(["path", "image"]), value, max_size=2),
    max_leaves=3,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    field=st.sampled_from(["image", "images", "text", "label", "split", "identifier"]),
    value=ANYTHING,
    place=st.sampled_from([0, 1, None]),
    name=st.sampled_from(["mine.json", "mine.jsonl"]),
)
def test_read_statements__any_value_in_any_field(
    tmp_path: Path, field: str, value: Any, place: int | None, name: str
) -> None:
    records: list[Any] = [sample("a.jpg", "yes"), sample("b.jpg", "no"), sample("c.jpg", "yes")]
    for record in records if place is None else [records[place]]:
        record[field] = value
    text = json.dumps(records) if name == "mine.json" else "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / name).write_text(text)
    problems = Problems(collect=True)
    read_table(tmp_path / name, problems=problems)
    if problems.found:
        with pytest.raises(DataError) as caught:
            read_table(tmp_path / name)
        assert "\n" not in str(caught.value)
    else:
        read_table(tmp_path / name)
