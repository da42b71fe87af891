"""Karpathy's JSON is read with its splits, numbers and order; what is wrong in it gives one line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mwa_lightning.data.annotations.caption_json import read_caption_json
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.samples.records import RetrievalSplit
from mwa_lightning.errors import DataError


def _entry(filename: str, split: str, *captions: str, **more: Any) -> dict[str, Any]:
    return {"filename": filename, "split": split, "sentences": [{"raw": text} for text in captions], **more}


def _read(folder: Path, images: Any, *, official: bool = False) -> dict[str, RetrievalSplit]:
    path = folder / "dataset.json"
    path.write_text(json.dumps({"images": images}))
    return read_caption_json(path, folder=folder, problems=Problems(), official=official)


def test_read_caption_json__coco(tmp_path: Path) -> None:
    images = [
        _entry("v1.jpg", "test", "one.", "two.", filepath="val2014", cocoid=391895, imgid=0),
        _entry("v2.jpg", "restval", "three", filepath="val2014", cocoid=60623, imgid=1),
        _entry("t1.jpg", "train", "four", filepath="train2014", cocoid=5, imgid=2),
        _entry("v3.jpg", "val", "five", filepath="val2014", cocoid=6, imgid=3),
        _entry("v0.jpg", "test", "six", filepath="val2014", cocoid=7, imgid=4),
    ]
    for i, sentence in enumerate(sentence for image in images for sentence in image["sentences"]):
        sentence["sentid"] = 700 - i
    splits = _read(tmp_path, images, official=True)
    assert sorted(splits) == ["test", "train", "val"]
    assert [tuple(picture) for picture in splits["test"].pictures] == [
        (str(tmp_path / "val2014" / "v1.jpg"), 391895, "v1.jpg"),
        (str(tmp_path / "val2014" / "v0.jpg"), 7, "v0.jpg"),
    ]
    assert [tuple(caption) for caption in splits["test"].captions] == [
        ("one.", 700, 0),
        ("two.", 699, 0),
        ("six", 695, 1),
    ]
    assert list(splits["train"].pictures.names) == ["v2.jpg", "t1.jpg"]
    assert splits["test"].sample_id(1) == "v1.jpg#699"


def test_read_caption_json__numbers(tmp_path: Path) -> None:
    images = [_entry("a.jpg", "train", "one", "two", imgid=4), _entry("b.jpg", "test", "three", imgid=2)]
    splits = _read(tmp_path, images)
    assert splits["train"].pictures.image_ids.tolist() == [4]
    assert splits["test"].pictures.image_ids.tolist() == [2]
    assert splits["train"].captions.caption_ids.tolist() == [0, 1]
    assert splits["test"].captions.caption_ids.tolist() == [2]
    for useless in ("x1", None, -1, True):
        splits = _read(tmp_path, [{**image, "imgid": useless if i else 8} for i, image in enumerate(images)])
        assert splits["train"].pictures.image_ids.tolist() == [0]
        assert splits["test"].pictures.image_ids.tolist() == [1]


def test_read_caption_json__labels_where_there_are_no_numbers(tmp_path: Path) -> None:
    def labels(*ids: Any) -> list[str] | None:
        images = [
            _entry(f"{i}.jpg", "test", "one", filepath="x", **({} if given is None else {"imgid": given}))
            for i, given in enumerate(ids)
        ]
        found = _read(tmp_path, images)["test"].pictures.labels
        return None if found is None else list(found)

    assert labels(4, 2) is None
    assert labels("img_4", "img_2") == ["img_4", "img_2"]
    paths = ["x/0.jpg", "x/1.jpg"]
    for ids in ((None, None), ("a", None), ("a", 7), ("a", "a")):
        assert labels(*ids) == paths, ids


def test_read_caption_json__image_listed_for_each_caption(tmp_path: Path) -> None:
    images = [_entry("a.jpg", "test", "one"), _entry("b.jpg", "test", "two"), _entry("a.jpg", "test", "three")]
    split = _read(tmp_path, images)["test"]
    assert list(split.pictures.names) == ["a.jpg", "b.jpg"]
    assert split.captions.image_index.tolist() == [0, 1, 0]


def test_read_caption_json__same_image_in_two_splits(tmp_path: Path) -> None:
    splits = _read(tmp_path, [_entry("a.jpg", "train", "one"), _entry("a.jpg", "test", "two")])
    assert splits["train"].pictures.image_ids.tolist() == splits["test"].pictures.image_ids.tolist() == [0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "it is empty"),
        ('{"images": [\n  {"filename" "a.jpg"}]}', "line 2 column 15: Expecting ':' delimiter"),
        ('{"images": [', "line 1 column 13"),
        ("[]", "lists no images"),
        ('{"annotations": []}', 'a list "images"'),
        ('{"images": {}}', 'a list "images"'),
        ('{"images": []}', "lists no images"),
        ("[" * 100_000, "is not JSON"),
        ('{"images": [' + "9" * 5000 + "]}", "is not JSON"),  # more digits than Python reads
    ],
)
def test_read_caption_json__not_karpathy(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "dataset_coco.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_caption_json(path, folder=tmp_path, problems=Problems())
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_caption_json__not_text(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    path.write_bytes(b'{"images": "\xff\xfe\xfa"}')
    with pytest.raises(DataError, match="is not UTF-8"):
        read_caption_json(path, folder=tmp_path, problems=Problems())


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("a.jpg", "images[1] is no object"),
        ({"split": "train", "sentences": [{"raw": "a"}]}, "images[1] lacks a filename"),
        (_entry(" ", "train", "a"), "images[1] lacks a filename"),
        ({"filename": "a.jpg", "sentences": [{"raw": "a"}]}, "images[1] (a.jpg) lacks a split"),
        (_entry("a.jpg", "train"), "images[1] (a.jpg) has no sentences"),
        ({"filename": "a.jpg", "split": "train"}, "images[1] (a.jpg) has no sentences"),
        ({"filename": "a.jpg", "split": "train", "sentences": [{"tokens": []}]},
         'sentences[0] lacks the caption "raw"'),
        (_entry("a.jpg", "train", "a", ""), "images[1] (a.jpg): the caption sentences[1] has no words ('')"),
        (_entry("a.jpg", "train", " \n"), "has no words"),
        (_entry("a.jpg", "train", "..."), "has no words"),
        (_entry("a.jpg", "train", "a", imgid=0), "have the same image id 0"),
    ],
)  # fmt: skip
def test_read_caption_json__unusable_entry(tmp_path: Path, entry: Any, says: str) -> None:
    with pytest.raises(DataError) as caught:
        _read(tmp_path, [_entry("0.jpg", "train", "good", imgid=0), entry])
    assert says in str(caught.value)
    assert str(tmp_path / "dataset.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_caption_json__official_captions_are_used_as_they_are(tmp_path: Path) -> None:
    images = [_entry("a.jpg", "test", "!", "日本", "🐶")]
    assert len(_read(tmp_path, images, official=True)["test"].captions) == 3
    with pytest.raises(DataError, match="no words"):
        _read(tmp_path, [_entry("a.jpg", "test", " ")], official=True)
    assert len(_read(tmp_path, [_entry("a.jpg", "test", "日本", "🐶", "7")])["test"].captions) == 3


def test_read_caption_json__collects_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    images = [_entry("a.jpg", "train", ""), 5, _entry("b.jpg", "train", "good", "?"), _entry("", "train", "c")]
    path.write_text(json.dumps({"images": images}))
    problems = Problems(collect=True)
    splits = read_caption_json(path, folder=tmp_path, problems=problems)
    assert [problem.kind for problem in problems.found] == [
        "caption without words",
        "unusable entry",
        "caption without words",
        "unusable entry",
    ]
    assert list(splits["train"].captions.texts) == ["good"]


def test_read_caption_json__many_captions(tmp_path: Path, write_karpathy: Callable[..., Path]) -> None:
    images = [
        _entry(f"COCO_train2014_{i:012}.jpg", "train", *[f"caption number {j} of {i}" for j in range(5)], cocoid=i)
        for i in range(12_000)
    ]
    split = _read(tmp_path, images)["train"]
    assert len(split.captions) == 60_000
    assert split.captions[-1].text == "caption number 4 of 11999"


def test_read_caption_json__a_split_of_another_name_is_told_by_its_file(tmp_path: Path) -> None:
    def image(name: str, split: str) -> dict[str, Any]:
        return {"filename": name, "split": split, "sentences": [{"raw": f"a dog in {name}"}]}

    files = {}
    for split, images in {"train": [image("a", "train"), image("b", "extra")], "val": [image("c", "val")]}.items():
        files[split] = tmp_path / f"{split}.json"
        files[split].write_text(json.dumps({"images": images}))
    problems = Problems()
    assert list(read_caption_json(files, folder=tmp_path, problems=problems)) == ["train", "extra", "val"]
    assert problems.notes == [
        f"{tmp_path}/train.json, {tmp_path}/val.json: 1 entry of the split 'extra', which is neither train, val nor "
        "test: not used; write one of these"
    ]
