"""Rows without their pictures are left out where the user said so, and the others keep what they had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mwa_lightning.data.inspection import inspect
from mwa_lightning.data.sources import Source, find_source
from mwa_lightning.errors import DataError

Write = Callable[..., Path]


def _rows(source: Source, **options: Any) -> dict[str, list[tuple[str, tuple[str, ...], str]]]:
    """Name, pictures and text of each row of each split."""
    found = {}
    for name, split in source.read(source.problems(**options)).items():
        rows: Any = split.captions if hasattr(split, "captions") else split.statements
        index = rows.image_index.reshape(len(rows), -1)
        found[name] = [
            (split.sample_id(i), tuple(split.pictures.names[j] for j in index[i]), split.texts[i])
            for i in range(len(rows))
        ]
    return found


@pytest.mark.parametrize("layout", ["karpathy", "jsonl"])
def test_leave_out_missing(write_karpathy: Write, write_statements: Write, layout: str) -> None:
    root = write_karpathy() if layout == "karpathy" else write_statements()
    source = find_source(layout=layout, root=root)
    whole = _rows(source)
    gone = {whole["train"][i][1][-1] for i in (2, 5)}
    late = whole["test"][0][1][0]
    for name in gone | {late}:
        (root / "pictures" / name).unlink()
    few = {name: [row for row in rows if not gone & set(row[1])] for name, rows in whole.items()}
    fewer = {name: [row for row in rows if late not in row[1]] for name, rows in few.items()}
    lost = len(whole["train"]) - len(few["train"])
    assert _rows(source) == whole  # that they are missing is found later
    assert _rows(source, skip_rows=lost) == few
    assert _rows(source, skip_rows=99, skip_in_evaluation=True) == fewer
    with pytest.raises(
        DataError, match=rf"is missing: .*; there are more such rows than data\.skip_bad_rows={lost - 1}"
    ):
        _rows(source, skip_rows=lost - 1)
    report = inspect({"layout": layout, "root": root, "skip_bad_rows": lost})
    assert [problem.kind for problem in report.problems] == ["missing image"]  # of test
    report = inspect({"layout": layout, "root": root, "skip_bad_rows": 99, "skip_bad_rows_in_eval": True})
    assert not report.fatal
    assert any("of no use (data.skip_bad_rows), the first: " in note for note in report.notes)


def test_read__share_of_train_of_statements(write_statements: Write) -> None:
    root = write_statements(splits={"train": 20, "test": 4})
    whole = _rows(find_source(layout="jsonl", root=root))
    parted = _rows(find_source(layout="jsonl", root=root, val_share=0.2))
    assert sorted(parted) == ["test", "train", "val"]
    assert sorted(parted["train"] + parted["val"]) == sorted(whole["train"])
    assert parted["test"] == whole["test"]


def test_leave_out_missing__wordless_captions_of_karpathy(write_karpathy: Write) -> None:
    def spoil(data: dict[str, Any]) -> None:
        data["images"][0]["sentences"][1]["raw"] = "."

    source = find_source(layout="karpathy", root=write_karpathy(change=spoil))
    with pytest.raises(DataError, match=r"has no words .*; data\.skip_bad_rows=N leaves out up to N such rows"):
        source.read(source.problems())
    assert len(source.read(source.problems(skip_rows=1))["train"]) == 15
