"""One's own statements and SNLI-VE's: forms, classes, splits, and what is refused with one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mwa_lightning.data.jsonl import read_jsonl, read_snli_ve
from mwa_lightning.data.problems import Problems
from mwa_lightning.data.splitting import hash_share
from mwa_lightning.data.statements import StatementSplit
from mwa_lightning.errors import DataError


def sample(image: Any = "a.jpg", label: Any = "yes", text: Any = "a dog", **more: Any) -> dict[str, Any]:
    return {"images" if isinstance(image, list) else "image": image, "text": text, "label": label, **more}


def write(folder: Path, records: list[Any], name: str = "mine.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / name


def read(folder: Path, records: list[Any], **options: Any) -> dict[str, StatementSplit]:
    options = {"problems": Problems(), **options}
    return read_jsonl(write(folder, records), folder=folder, **options)


def test_read_jsonl__one_image(tmp_path: Path) -> None:
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


def test_read_jsonl__three_images(tmp_path: Path) -> None:
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
def test_read_jsonl__classes(
    tmp_path: Path, labels: list[Any], given: tuple[str, ...] | None, classes: tuple[str, ...], numbers: list[int]
) -> None:
    splits = read(tmp_path, [sample(label=label, split="train") for label in labels], classes=given)
    assert splits["train"].classes == classes
    assert splits["train"].statements.labels.tolist() == numbers


@pytest.mark.parametrize("paired", [False, True])
def test_read_jsonl__split_by_hash(tmp_path: Path, paired: bool) -> None:
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
        ([sample(["a", "b"]), sample(["c"])], "line 2 has 1 images, line 1 has 2: give every sample the same number"),
        ([sample(["a", ""])], "line 1 lacks the path of an image"),
        ([sample(5)], "line 1 lacks the path of an image"),
        ([sample([])], "line 1 lacks the path of an image"),
        ([{"text": "a", "label": 1}], "line 1 lacks the path of an image"),
        ([sample(label=0.5)], "line 1 lacks a label"),
        ([sample(label=None)], "line 1 lacks a label"),
        ([sample(), sample(label="no", text="  ")], "line 2 (mine-2): the statement has no words"),
        ([sample(), sample(label="no", text=None)], "line 2 (mine-2) lacks a statement"),
        ([sample(identifier="x"), sample(label="no", identifier="x")], "line 2 (x) has the identifier of line 1"),
        ([sample(split="tset")], "line 1 is of the split 'tset'"),
        ([sample(split=["val"])], "line 1 is of the split ['val']"),
        ([sample(split="val"), sample(label="no")], "line 2 lacks the split that others have"),
        ([sample(), sample()], "has but the label yes"),
        ([], "mine.jsonl lists no statements"),
        ([[1]], "line 1 is no object"),
        ([sample(), [1]], "line 2 is no object"),
    ],
)
def test_read_jsonl__unusable(tmp_path: Path, records: list[Any], says: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, records)
    assert says in str(caught.value)
    assert str(tmp_path / "mine.jsonl") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_jsonl__label_outside_the_given_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1 \(mine-1\) has the label 'yes', which is none of the classes a, b"):
        read(tmp_path, [sample()], classes=("a", "b"))


def test_read_jsonl__collects_every_problem(tmp_path: Path) -> None:
    problems = Problems(collect=True)
    records = [sample("a"), sample("b", "no", " "), sample(["c", "d"], "no"), sample("e", None), 7, sample("f", "no")]
    splits = read(tmp_path, records, problems=problems)
    assert sorted(problem.kind for problem in problems.found) == [
        "another number of images",
        "statement without words",
        "unusable entry",
        "unusable entry",
    ]
    assert sum(map(len, splits.values())) == 2


# SNLI-VE


def entailment(image: Any, label: str = "neutral", key: str = "Flickr30K_ID", **more: Any) -> dict[str, Any]:
    record = {key: image, "gold_label": label, "sentence1": "not used", "sentence2": "A dog.", "captionID": "x"}
    return {**record, "annotator_labels": [label], **more}


def test_read_snli_ve__official_layout(tmp_path: Path) -> None:
    write(tmp_path, [entailment("1", "entailment", pairID="1.jpg#0r1e"), entailment("1", "-")], "snli_ve_train.jsonl")
    dev = [entailment("2.jpg", "contradiction", key="Flikr30kID"), entailment(3)]
    write(tmp_path, dev, "snli_ve_dev.jsonl")
    problems = Problems(collect=True)
    splits = read_snli_ve(tmp_path, folder=tmp_path / "flickr30k-images", problems=problems)
    assert problems.found == []
    assert problems.notes == [f'{tmp_path / "snli_ve_train.jsonl"}: 1 lines with the label "-" are left out']
    assert splits.keys() == {"train", "val"}
    assert splits["train"].classes == ("contradiction", "neutral", "entailment")
    assert splits["train"].statements.labels.tolist() == [2]
    assert list(splits["train"].statements.identifiers) == ["1.jpg#0r1e"]
    assert list(splits["val"].statements.texts) == ["A dog.", "A dog."]
    assert splits["val"].statements.labels.tolist() == [0, 1]
    paths = [str(Path(picture.path).relative_to(tmp_path)) for picture in splits["val"].pictures]
    assert paths == ["flickr30k-images/2.jpg", "flickr30k-images/3.jpg"]


def test_read_snli_ve__left_out_lines_are_logged_in_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, [entailment("1"), entailment("1", "-"), entailment("2", "-")], "snli_ve_test.jsonl")
    splits = read_snli_ve(tmp_path, folder=tmp_path, problems=Problems())
    assert len(splits["test"]) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f'{tmp_path / "snli_ve_test.jsonl"}: 2 lines with the label "-" are left out'
    ]


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([entailment("1", "maybe")], "has the label 'maybe', which is none of the classes contradiction, neutral"),
        ([entailment("", "neutral")], "line 1 lacks the number of its image"),
        ([{"gold_label": "neutral"}], "line 1 lacks the number of its image"),
        ([entailment("1", pairID="x"), entailment("2", pairID="x")], "line 2 (x) has the identifier of line 1"),
        ([], "snli_ve_dev.jsonl lists no statements"),
    ],
)
def test_read_snli_ve__unusable(tmp_path: Path, records: list[Any], says: str) -> None:
    write(tmp_path, records, "snli_ve_dev.jsonl")
    with pytest.raises(DataError) as caught:
        read_snli_ve(tmp_path, folder=tmp_path, problems=Problems())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
