"""Total key maps: nothing is left out silently, on either side."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from mwa_lightning.backbones.checkpoints.key_map import KeyMap, apply_key_map
from mwa_lightning.errors import CheckpointError

KEYS = KeyMap(
    names={"A": "one", "B": "two", "H1": "head.left", "H2": "head.right"},
    dropped=[re.compile(r"extra\.\d+")],
    optional=[frozenset({"head.left", "head.right"})],
)
SHAPES = {name: torch.Size([2]) for name in ("one", "two", "head.left", "head.right")}


def state(*keys: str) -> dict[str, Tensor]:
    return {key: torch.full((2,), float(number)) for number, key in enumerate(keys)}


def test_apply_key_map__renames_and_accounts_for_every_key() -> None:
    mapped = apply_key_map(state("B", "A", "extra.7"), KEYS, SHAPES, origin="file")
    assert {name: tensor[0].item() for name, tensor in mapped.tensors.items()} == {"two": 0.0, "one": 1.0}
    assert mapped.dropped == ["extra.7"]
    assert mapped.new == ["head.left", "head.right"]


def test_apply_key_map__keys_of_parameters_that_we_lack_are_dropped() -> None:
    shapes = {name: SHAPES[name] for name in ("one", "two")}
    mapped = apply_key_map(state("A", "B", "H1", "H2"), KEYS, shapes, origin="file")
    assert mapped.dropped == ["H1", "H2"]
    assert mapped.new == []


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (("A",), "missing: B"),
        (("A", "B", "C", "extra.x"), "not known: C, extra.x"),
        (("A", "B", "H2"), "missing: H1"),
        (("B", "C"), "missing: A; not known: C"),
    ],
)
def test_apply_key_map__lists_what_does_not_fit(keys: tuple[str, ...], said: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"file: does not fit ({said})")):
        apply_key_map(state(*keys), KEYS, SHAPES, origin="file")


def test_apply_key_map__shapes_must_be_equal_unless_the_caller_sees_to_them() -> None:
    other = state("A", "B") | {"A": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=re.escape("of another shape: A (3,) for (2,)")):
        apply_key_map(other, KEYS, SHAPES, origin="file")
    assert apply_key_map(other, KEYS, SHAPES | {"one": None}, origin="file").tensors["one"].shape == (3,)


def test_apply_key_map__heads_of_another_task_count_as_not_in_the_file() -> None:
    keys = KeyMap(names=KEYS.names, task_shaped=[frozenset({"head.left", "head.right"})])
    mapped = apply_key_map(state("A", "B", "H1", "H2"), keys, SHAPES, origin="file")
    assert (mapped.dropped, mapped.new) == ([], [])
    other = state("A", "B", "H1", "H2") | {"H2": torch.zeros(3)}
    mapped = apply_key_map(other, keys, SHAPES, origin="file")
    assert (mapped.dropped, mapped.new) == (["H1", "H2"], ["head.left", "head.right"])
    assert mapped.tensors.keys() == {"one", "two"}
    with pytest.raises(CheckpointError, match="missing: H1"):
        apply_key_map(state("A", "B", "H2"), keys, SHAPES, origin="file")
