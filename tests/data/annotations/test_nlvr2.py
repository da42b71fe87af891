"""NLVR2's official files: what is read, what is passed over, and what is refused with one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mwa_lightning.data.annotations.nlvr2 import read_nlvr2
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.samples.statements import StatementSplit
from mwa_lightning.data.scenes.writing import write_scenes_nlvr2
from mwa_lightning.errors import DataError

EXTRA = {"writer": "57", "synset": "dog", "query": "dogs0", "left_url": "x", "validation": {"1": "True"}}


def line(identifier: str, label: Any = "True", sentence: Any = "Two dogs.", **more: Any) -> dict[str, Any]:
    return {"identifier": identifier, "sentence": sentence, "label": label, **EXTRA, **more}


LINES = {
    "train": [line("train-5-0-0", directory=55), line("train-5-0-1", "False", "A cat.", directory=55)],
    "dev": [line("dev-1-0-0"), line("dev-1-1-0", "False"), line("dev-2-0-1")],
    "test1": [line("test1-1-0-0")],
}


def write(root: Path, lines: dict[str, list[dict[str, Any]]] = LINES) -> Path:
    data = root / "nlvr" / "nlvr2" / "data"
    data.mkdir(parents=True, exist_ok=True)
    for name, records in lines.items():
        (data / f"{name}.json").parent.mkdir(exist_ok=True)
        (data / f"{name}.json").write_text("".join(json.dumps(record) + "\n" for record in records))
    return data


def read(root: Path, problems: Problems | None = None) -> dict[str, StatementSplit]:
    return read_nlvr2(root / "nlvr" / "nlvr2" / "data", folder=root, problems=problems or Problems())


def test_read_nlvr2__official_layout(tmp_path: Path) -> None:
    write(tmp_path)
    splits = read(tmp_path)
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "val": 3, "test": 1}
    train = splits["train"]
    assert train.classes == ("False", "True")
    assert list(train.statements.texts) == ["Two dogs.", "A cat."]
    assert train.statements.labels.tolist() == [1, 0]
    assert list(train.statements.identifiers) == ["train-5-0-0", "train-5-0-1"]
    places = [str(Path(picture.path).relative_to(tmp_path)) for picture in train.pictures]
    assert places == ["images/train/55/train-5-0-img0.png", "images/train/55/train-5-0-img1.png"]
    assert train.statements.image_index.tolist() == [[0, 1], [0, 1]]
    assert splits["val"].statements.image_index.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert splits["val"].pictures[3].path == str(tmp_path / "images" / "dev" / "dev-1-1-img1.png")
    ids = [number for split in splits.values() for number in split.pictures.image_ids.tolist()]
    assert sorted(ids) == list(range(10))
    assert splits["val"].groups is not None
    assert splits["val"].groups[0] == splits["val"].groups[1] != splits["val"].groups[2]
    assert splits["val"].subsets == {}


def test_read_nlvr2__labels_in_other_forms(tmp_path: Path) -> None:
    labels = ["true", True, "False", False]
    write(tmp_path, {"dev": [line(f"dev-{i}-0-0", label) for i, label in enumerate(labels)]})
    assert read(tmp_path)["val"].statements.labels.tolist() == [1, 1, 0, 0]


def test_read_nlvr2__subsets(tmp_path: Path) -> None:
    balanced, unbalanced = LINES["dev"][:2], [LINES["dev"][2], line("dev-9-0-0")]
    write(tmp_path, {**LINES, "balanced/balanced_dev": balanced, "unbalanced/unbalanced_dev": unbalanced})
    problems = Problems(collect=True)
    subsets = read(tmp_path, problems)["val"].subsets
    assert {name: members.tolist() for name, members in subsets.items()} == {
        "balanced": [True, True, False],
        "unbalanced": [False, False, True],
    }
    assert problems.found == []
    assert len(problems.notes) == 1
    assert "1 of 2 identifiers not in dev.json: left out" in problems.notes[0]


def test_read_nlvr2__scenes(tmp_path: Path) -> None:
    write_scenes_nlvr2(tmp_path / "set", domain="target", seed=1, train=8, dev=4, test=4)
    splits = read(tmp_path / "set")
    assert {name: (len(split), len(split.pictures)) for name, split in splits.items()} == {
        "train": (8, 8),
        "val": (4, 4),
        "test": (4, 4),
    }
    for split in splits.values():
        assert all(Path(picture.path).is_file() for picture in split.pictures)
        assert split.groups is not None
        by_group: dict[int, set[tuple[str, int]]] = {}
        for group, statement in zip(split.groups.tolist(), split.statements, strict=True):
            by_group.setdefault(group, set()).add((statement.text, statement.label))
        assert all(len({text for text, _ in members}) == 1 and len(members) == 2 for members in by_group.values())


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([line("dev-1-0-0", "Maybe")], "entry 1 (dev-1-0-0) has the label 'Maybe', which is none of the classes"),
        ([line("dev-1-0-0", None)], "has the label 'None'"),
        ([line("dev-1-0-0"), line("dev-1-0-0")], "dev.json: line 1: give each sample its own"),
        ([line("dev-1-0-0", sentence=" \t")], "the statement has no words"),
        ([line("dev-1-0-0", sentence=None)], "lacks a statement"),
        ([line("dev-1-0")], "'dev-1-0', which is not of the form split-set-pair-sentence"),
        ([{"sentence": "A dog.", "label": "True"}], "entry 1 lacks an identifier"),
        ([{}], "dev.json lists no statements"),
        ([], "dev.json lists no statements"),
    ],
)
def test_read_nlvr2__unusable(tmp_path: Path, lines: list[dict[str, Any]], says: str) -> None:
    data = write(tmp_path, {"dev": lines})
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert says in str(caught.value)
    assert str(data / "dev.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_nlvr2__collects_every_problem(tmp_path: Path) -> None:
    dev = [line("dev-1-0-0", "x"), line("dev-2-0-0", sentence=""), line("dev-3-0-0"), line("dev-3-0-0"), {}]
    write(tmp_path, {"dev": dev, "test1": []})
    problems = Problems(collect=True)
    splits = read(tmp_path, problems)
    assert [problem.kind for problem in problems.found] == [
        "label outside the classes",
        "statement without words",
        "identifier used twice",
        "unusable entry",
        "no statements",
    ]
    assert {name: len(split) for name, split in splits.items()} == {"val": 1}


def test_read_nlvr2__names_the_files_that_are_there(tmp_path: Path) -> None:
    """An identifier of another file, and a subset of a file that is called as BLIP calls it."""
    data = write(
        tmp_path, {"nlvr2_train": [line("train-5-0-0")], "nlvr2_dev": [line("train-5-0-0"), line("dev-1-0-0")]}
    )
    write(tmp_path, {"balanced/balanced_dev": [line("dev-9-9-9")]})
    problems = Problems(collect=True)
    read(tmp_path, problems)
    assert [problem.message for problem in problems.found] == [
        f"{data}/nlvr2_dev.json: line 1 (train-5-0-0) has the identifier of another, {data}/nlvr2_train.json: entry 1: "
        "give each sample its own"
    ]
    assert problems.notes == [f"{data}/balanced/balanced_dev.json: 1 of 1 identifier not in nlvr2_dev.json: left out"]
