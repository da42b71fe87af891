"""Statements are kept compactly and come out as they went in."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities import move_data_to_device

from mwa_lightning.data.samples.statements import Statement, StatementBatch, StatementBuilder, StatementSplit


def _split(*, groups: tuple[int | None, ...] = (0, 1, 0)) -> StatementSplit:
    builder = StatementBuilder(name="val", folder="/root", classes=["no", "yes"])
    builder.add(images=[("x/a.jpg", 7), ("b.jpg", 3)], text="one", identifier="s-0", label=1, group=groups[0])
    builder.add(images=[("b.jpg", 3), ("c.jpg", 9)], text="zwö", identifier="s-1", label=0, group=groups[1])
    builder.add(images=[("c.jpg", 9), ("c.jpg", 9)], text="three", identifier="s-2", label=1, group=groups[2])
    return builder.build({"balanced": ["s-2", "s-0", "elsewhere"], "unbalanced": []})


def test_statement_builder__split() -> None:
    split = pickle.loads(pickle.dumps(_split()))
    assert len(split) == 3
    assert split.images_a_sample == 2
    assert list(split.statements) == [
        Statement("one", "s-0", 1, (0, 1)),
        Statement("zwö", "s-1", 0, (1, 2)),
        Statement("three", "s-2", 1, (2, 2)),
    ]
    assert split.statements[-2:] == list(split.statements)[-2:]
    with pytest.raises(IndexError):
        split.statements[3]
    assert [picture.path for picture in split.pictures] == [
        str(Path("/root") / name) for name in ("x/a.jpg", "b.jpg", "c.jpg")
    ]
    assert split.pictures.image_ids.tolist() == [7, 3, 9]
    assert split.pictures[0].name == "a.jpg"
    assert split.sample_id(1) == "s-1"
    assert split.classes == ("no", "yes")
    assert split.groups.tolist() == [0, 1, 0]
    assert {name: members.tolist() for name, members in split.subsets.items()} == {
        "balanced": [True, False, True],
        "unbalanced": [False, False, False],
    }


def test_statement_builder__groups_are_known_of_all_or_none() -> None:
    assert _split(groups=(0, None, 1)).groups is None


def test_statement_batch__goes_to_a_device_as_it_is() -> None:
    zeros = torch.zeros(2, dtype=torch.int64)
    images = torch.zeros(2, 2, 3, 4, 4, dtype=torch.uint8)
    moved = move_data_to_device(
        StatementBatch(images, zeros, zeros > 0, zeros, zeros, ["a", "b"]), torch.device("meta")
    )
    assert isinstance(moved, StatementBatch)
    assert {tensor.device.type for tensor in moved[:5]} == {"meta"}
    assert moved.images.dtype is torch.uint8
    assert moved.sample_ids == ["a", "b"]
