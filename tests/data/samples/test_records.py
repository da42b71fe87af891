"""Strings in one buffer come out as they went in; splits count and name as they should."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.utilities import move_data_to_device

from mwa_lightning.data.samples.records import Caption, Picture, SplitBuilder, Strings, TrainBatch


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]))))
def test_strings__equal_the_list(texts: list[str]) -> None:
    strings = Strings(texts)
    assert list(strings) == texts
    assert list(pickle.loads(pickle.dumps(strings))) == texts
    assert strings[1:-1] == texts[1:-1]
    if texts:
        assert strings[-1] == texts[-1]
    for outside in (len(texts), -len(texts) - 1):
        with pytest.raises(IndexError):
            strings[outside]


def test_strings__half_a_surrogate_pair() -> None:
    assert list(Strings(["a\ud83d", "b"])) == ["a?", "b"]


def test_split_builder__one_picture_for_one_path() -> None:
    builder = SplitBuilder(name="val", folder="/root")
    builder.add(path="x/a.jpg", name="a.jpg", image_id=7, text="one", caption_id=70)
    builder.add(path="x/b.jpg", name="b.jpg", image_id=3, text="two", caption_id=30)
    builder.add(path="x/a.jpg", name="other", image_id=9, text="three", caption_id=71)
    split = builder.build()
    assert list(split.pictures) == [
        Picture(str(Path("/root/x/a.jpg")), 7, "a.jpg"),
        Picture(str(Path("/root/x/b.jpg")), 3, "b.jpg"),
    ]
    assert list(split.captions) == [Caption("one", 70, 0), Caption("two", 30, 1), Caption("three", 71, 0)]
    assert split.sample_id(2) == "a.jpg#71"
    assert split.captions.image_index.tolist() == [0, 1, 0]


def test_train_batch__goes_to_a_device_as_it_is() -> None:
    zeros = torch.zeros(2, dtype=torch.int64)
    batch = TrainBatch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), zeros, zeros > 0, zeros, ["a#1", "b#2"])
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, TrainBatch)
    assert moved.images.device.type == "meta"
    assert moved.images.dtype is torch.uint8
    assert moved.sample_ids == ["a#1", "b#2"]
