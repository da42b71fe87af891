"""SNLI-VE in its official files and in those of others: what is read, left out and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mwa_lightning.data.annotations.nlvr2 import read_nlvr2
from mwa_lightning.data.annotations.snli_ve import read_snli_ve
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.errors import DataError


def write(folder: Path, records: list[Any], name: str) -> Path:
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / name


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
    assert problems.notes == [f'{tmp_path / "snli_ve_train.jsonl"}: left out 1 line with the label "-"']
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
        f'{tmp_path / "snli_ve_test.jsonl"}: left out 2 lines with the label "-"'
    ]


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([entailment("1", "maybe")], "has the label 'maybe', which is none of the classes contradiction, neutral"),
        ([entailment("", "neutral")], "line 1 lacks the number of its image"),
        ([{"gold_label": "neutral"}], "line 1 lacks the number of its image"),
        ([entailment("1", pairID="x"), entailment("2", pairID="x")], ".jsonl: line 1: give each sample its own"),
        ([], "snli_ve_dev.jsonl lists no statements"),
    ],
)
def test_read_snli_ve__unusable(tmp_path: Path, records: list[Any], says: str) -> None:
    write(tmp_path, records, "snli_ve_dev.jsonl")
    with pytest.raises(DataError) as caught:
        read_snli_ve(tmp_path, folder=tmp_path, problems=Problems())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value", [None, True, 7, -1.5, float("nan"), 10**400, "", "\0", "\ud800", [], [None], {"a": []}]
)
@pytest.mark.parametrize("form", ["official", "list"])
def test_read__any_value_in_any_field(tmp_path: Path, value: Any, form: str) -> None:
    """Of SNLI-VE and NLVR2: it is read, or one line says what is wrong."""
    one = {"Flickr30K_ID": "1", "sentence2": "A dog.", "gold_label": "neutral", "pairID": "x"}
    two = {"identifier": "dev-1-0-0", "sentence": "Dogs.", "label": "True", "directory": 5}
    names = ("snli_ve_dev.jsonl", "dev.json")
    if form == "list":
        one = {"image": "1", "sentence": "A dog.", "label": "neutral"}
        two = {"images": ["a.png", "b.png"], "sentence": "Dogs.", "label": "True"}
        names = ("ve_dev.json", "nlvr_dev.json")
    for sound, name, reads in ((one, names[0], read_snli_ve), (two, names[1], read_nlvr2)):
        for key in sound:
            records = [
                {**sound, key: value},
                {**sound, "pairID": "y", "identifier": "dev-2-0-0"} if form != "list" else sound,
            ]
            text = json.dumps(records) if form == "list" else "".join(json.dumps(record) + "\n" for record in records)
            (tmp_path / name).write_text(text)
            problems = Problems(collect=True)
            splits = reads(tmp_path, folder=tmp_path, problems=problems)
            assert sum(map(len, splits.values())) + len(problems.found) >= 1
            assert all("\n" not in str(DataError(message)) for _, message in problems.found)
            (tmp_path / name).unlink()


def test_read_snli_ve__bad_rows_of_train_are_those_of_train(tmp_path: Path) -> None:
    """Whether the image is missing or the line is no JSON: `data.skip_bad_rows` suffices, and the message says so."""
    write(tmp_path, [entailment(""), entailment("1")], "snli_ve_train.jsonl")
    says = r"; data\.skip_bad_rows=N leaves out up to N such rows$"
    with pytest.raises(DataError, match=rf"line 1 lacks .*{says}"):
        read_snli_ve(tmp_path, folder=tmp_path, problems=Problems(skip_rows=0))
    with (tmp_path / "snli_ve_train.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(DataError, match=rf"is not JSONL .*{says}"):
        read_snli_ve(tmp_path, folder=tmp_path, problems=Problems(skip_rows=0))
    problems = Problems(skip_rows=2)
    assert len(read_snli_ve(tmp_path, folder=tmp_path, problems=problems)["train"]) == 1
    assert len(problems.skipped) == 2
    write(tmp_path, [entailment("")], "snli_ve_dev.jsonl")
    with pytest.raises(DataError, match=r"data\.skip_bad_rows=N data\.skip_bad_rows_in_eval=true leaves out"):
        read_snli_ve(tmp_path, folder=tmp_path, problems=Problems(skip_rows=9))
