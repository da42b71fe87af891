"""Samples go to the split that the table names, or to one by a hash that others do not change."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mwa_lightning.data.problems import Problems
from mwa_lightning.data.splitting import assign_splits, hash_share, split_by_hash
from mwa_lightning.errors import DataError

TABLE = Path("table.csv")


@given(paths=st.sets(st.text("abcdef/", min_size=1), min_size=3, max_size=60), data=st.data())
def test_split_by_hash__every_part_has_some_in_the_order_of_the_hash(paths: set[str], data: st.DataObject) -> None:
    splits = split_by_hash(paths)
    assert splits == split_by_hash(data.draw(st.permutations(sorted(paths))))
    parts = [[hash_share(path) for path in paths if splits[path] == name] for name in ("train", "val", "test")]
    assert all(parts)
    assert max(parts[0]) <= min(parts[1]) <= max(parts[1]) <= min(parts[2])


def test_split_by_hash__others_move_none() -> None:
    paths = [f"{i}.jpg" for i in range(1000)]
    few = split_by_hash(paths[:500])
    many = split_by_hash(paths)
    assert {path: many[path] for path in few} == few


def test_assign_splits__named() -> None:
    rows = [(1, "train", "a"), (2, "restval", "b"), (3, "dev", "a"), (4, "validation", "c"), (5, "test", "d")]
    assert assign_splits(rows, TABLE, Problems()) == ["train", "train", "val", "val", "test"]


def test_assign_splits__some_are_missing() -> None:
    with pytest.raises(DataError, match=r"table\.csv: line 2 lacks the split that others have"):
        assign_splits([(1, "train", "a"), (2, None, "b")], TABLE, Problems())
    problems = Problems(collect=True)
    assert assign_splits([(1, None, "a"), (2, "val", "b"), (3, None, "c")], TABLE, problems) == [None, "val", None]
    assert len(problems.found) == 2
