"""COCO's own captions, and the lists of BLIP, ALBEF and LAVIS; other JSON is named for what it is."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mwa_lightning.data.annotations.caption_json import read_caption_json
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.samples.records import RetrievalSplit
from mwa_lightning.errors import DataError

KARPATHY = {
    "images": [
        {"filename": f"{i}.jpg", "split": split, "cocoid": 7 + i, "sentences": [{"raw": f"a dog {i}", "sentid": i}]}
        for i, split in enumerate(["train", "restval", "validation", "Test"])
    ]
}
COCO = {
    "info": {"year": 2017},
    "images": [{"id": 10 + i, "file_name": f"{i}.jpg"} for i in range(40)],
    "annotations": [{"id": j, "image_id": 10 + j // 2, "caption": f"caption {j}"} for j in range(80)],
}
LISTS = {
    "train": [
        {"image": f"val2014/{i // 2}.jpg", "caption": f"dog {i}", "image_id": f"coco_{i // 2}"} for i in range(4)
    ],
    "val": [{"image": "val2014/7.jpg", "caption": ["one", "two", "three"]}],
    "test": [{"image": "val2014/8.jpg", "caption": ["one", "two"]}, {"image": "val2014/9.jpg", "caption": "three"}],
}


def write(folder: Path, name: str, data: Any) -> Path:
    (folder / name).write_text(json.dumps(data))
    return folder / name


def read(files: Any, **options: Any) -> dict[str, RetrievalSplit]:
    return read_caption_json(files, folder=Path(), **{"problems": Problems(), **options})


def sizes(splits: dict[str, RetrievalSplit]) -> dict[str, tuple[int, int]]:
    return {name: (len(split.pictures), len(split.captions)) for name, split in splits.items()}


def test_read_caption_json__karpathy_with_splits_by_other_names(tmp_path: Path) -> None:
    assert sizes(read(write(tmp_path, "d.json", KARPATHY))) == {"train": (2, 2), "val": (1, 1), "test": (1, 1)}


def test_read_caption_json__coco(tmp_path: Path) -> None:
    val = {**COCO, "images": [{"id": 99, "file_name": "99.jpg"}]}
    val["annotations"] = [{"id": 900 + j, "image_id": given, "caption": "a dog"} for j, given in enumerate([99, 99.0])]
    files = {"train": write(tmp_path, "t.json", COCO), "val": write(tmp_path, "v.json", val)}
    splits = read(files, official=True)
    assert sizes(splits) == {"train": (40, 80), "val": (1, 2)}
    assert splits["train"].pictures.image_ids.tolist() == list(range(10, 50))
    assert splits["train"].captions[3] == ("caption 3", 3, 1)
    assert splits["val"].sample_id(1) == "99.jpg#901"


def test_read_caption_json__lists(tmp_path: Path) -> None:
    splits = read({name: write(tmp_path, f"{name}.json", data) for name, data in LISTS.items()}, official=True)
    assert sizes(splits) == {"train": (2, 4), "val": (1, 3), "test": (2, 3)}
    assert splits["train"].pictures[1].path == "val2014/1.jpg"
    assert splits["test"].captions.image_index.tolist() == [0, 0, 1]
    ids = [number for split in splits.values() for number in split.pictures.image_ids.tolist()]
    assert sorted(ids) == list(range(5))


@pytest.mark.parametrize("data", [COCO, [record for records in LISTS.values() for record in records] * 9])
def test_read_caption_json__one_file_without_splits(tmp_path: Path, data: Any) -> None:
    """One's own set is divided by a hash; a published one has splits, which its file's name tells."""
    file = write(tmp_path, "captions.json", data)
    splits = read(file)
    assert splits.keys() == {"train", "val", "test"}
    assert max(len(split) for split in splits.values()) == len(splits["train"])
    with pytest.raises(DataError, match=r"does not say which images belong to train, val and test: .* data=karpathy"):
        read(file, official=True)


def test_read_caption_json__splits_in_a_list(tmp_path: Path) -> None:
    names = ["train", "val", "test"]
    records = [{"image": f"{i}.jpg", "caption": "a dog", "split": name} for i, name in enumerate(names)]
    assert sizes(read(write(tmp_path, "a.json", records))) == dict.fromkeys(names, (1, 1))
    del records[1]["split"]
    with pytest.raises(DataError, match=r"\[1\] \(1.jpg\) lacks the split that others have"):
        read(write(tmp_path, "a.json", records))


OTHERS = [
    ([{"question": "What ?", "question_id": 1, "image": "a.jpg", "answer": ["dog"]}], r"questions and answers \(VQA\)"),
    ({"questions": [{"question": "What ?", "image_id": 1, "question_id": 1}]}, r"questions and answers \(VQA\)"),
    ({"annotations": [{"question_id": 1, "answers": [], "image_id": 1}]}, r"questions and answers \(VQA\)"),
    ({"07333408": {"question": "What ?", "answer": "yes", "imageId": "2"}}, r"questions and answers \(VQA\)"),
    ([{"id": 1, "qas": [{"question": "What ?"}]}], r"questions and answers \(VQA\)"),
    ({"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": []}]}, "boxes and masks"),
    ({"images": [], "annotations": [{"image_id": 1, "keypoints": []}]}, "boxes and masks"),
    ({"images": [], "annotations": [{"image_id": 1, "segments_info": []}]}, "boxes and masks"),
    ({"images": [{"id": 1, "file_name": "a.jpg"}], "categories": []}, "images without captions"),
    ([{"id": 1, "regions": [{"phrase": "a dog"}]}], "Visual Genome"),
    ([{"image": "a.jpg", "text": "left dog", "ref_id": 1}], "RefCOCO"),
    ([{"id": "1", "image": "a.jpg", "conversations": []}], "LLaVA"),
    ([{"image_id": 1, "caption": "a dog"}], "without the names of images"),
    ([{"image": "a.jpg", "sentence": "a dog", "label": "True"}], "take data=statements for labelled texts"),
    ({"a.jpg": ["a dog"]}, "no JSON of captions"),
    (7, "no JSON of captions"),
]


@pytest.mark.parametrize(("data", "says"), OTHERS)
@pytest.mark.parametrize("official", [True, False])
def test_read_caption_json__other_kinds(tmp_path: Path, data: Any, says: str, official: bool) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read(write(tmp_path, "a.json", data), official=official)
    assert str(tmp_path / "a.json") in str(caught.value)
    assert "\n" not in str(caught.value)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([float("nan"), float("inf"), 9.0, 10**400, -1, "", " ", "\0", "\ud800", "train", "a/../b.jpg"]),
    lambda value: (
        st.lists(value, max_size=2) | st.dictionaries(st.sampled_from(["id", "raw", "image"]), value, max_size=2)
    ),
    max_leaves=3,
)


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a JSON stand, from its top down."""
    below = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    return [place, *(deeper for key, inner in below for deeper in places(inner, (*place, key)))]


def replaced(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of a JSON with another value at a place."""
    if not place:
        return value
    data = copy.deepcopy(data)
    inside = data
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return data


SMALL_COCO = {"images": COCO["images"][:2], "annotations": COCO["annotations"][:4]}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), valid=st.sampled_from([KARPATHY, SMALL_COCO, LISTS["train"]]), official=st.booleans())
def test_read_caption_json__any_value_in_any_place(
    tmp_path: Path, data: st.DataObject, valid: Any, official: bool
) -> None:
    """It is read, or said with a line what is wrong, whatever stands where; a run and an inspection agree."""
    damaged = replaced(valid, data.draw(st.sampled_from(places(valid))), data.draw(ANYTHING))
    file = write(tmp_path, "a.json", damaged)
    problems = Problems(collect=True)
    splits = read({"train": file}, problems=problems, official=official)
    if not problems.found:
        assert sizes(read({"train": file}, official=official)) == sizes(splits)
        return
    with pytest.raises(DataError) as caught:
        read({"train": file}, official=official)
    assert str(caught.value).startswith(str(DataError(problems.found[0].message)))
    assert "\n" not in str(caught.value)
