"""Labels of whatever spelling find their class."""

from __future__ import annotations

from typing import Any

import pytest

from mwa_lightning.data.samples.labels import Classes, classes_of, label_text


@pytest.mark.parametrize(
    ("values", "classes", "numbers"),
    [
        ([0.0, 1.0, 1], ("0", "1"), [0, 1, 1]),
        (["0.0", "1.0", "1"], ("0", "1"), [0, 1, 1]),
        (["10", "9", "-1.0"], ("-1", "9", "10"), [2, 1, 0]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        (["True", "true ", "FALSE"], ("FALSE", "True"), [1, 1, 0]),
        (["yes", "No", " no"], ("No", "yes"), [1, 0, 0]),
        (["1.5", "1.0", "x"], ("1.0", "1.5", "x"), [1, 0, 2]),
        (["ja", "nein", "Straße", "STRASSE"], ("STRASSE", "ja", "nein"), [1, 2, 0, 0]),
    ],
)
def test_classes_of__spellings(values: list[Any], classes: tuple[str, ...], numbers: list[int]) -> None:
    labels = [label_text(value) for value in values]
    assert None not in labels
    found = classes_of(sorted({str(label) for label in labels}))
    assert found.names == classes
    assert [classes.index(found.of(str(label))) for label in labels] == numbers


def test_classes__that_are_given() -> None:
    classes = Classes(["no", "Yes", "1"])
    assert [classes.of(label) for label in ("NO", "Yes", "yes", "1.0", "01", "2", "maybe")] == [
        *("no", "Yes", "Yes", "1", "1", "2", "maybe")
    ]
    assert [Classes(["a", "A"]).of(label) for label in "aA"] == ["a", "A"]


@pytest.mark.parametrize("value", [None, float("nan"), "", "  ", "nan", "NaN", "<NA>"])
def test_label_text__missing(value: Any) -> None:
    assert label_text(value) is None


@pytest.mark.parametrize("value", [0.5, float("inf"), [1], {}, 10**18])
def test_label_text__none(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        label_text(value)
