from __future__ import annotations

import re
from typing import Any

from mwa_lightning.report.published_results import Facts, compare
from mwa_lightning.report.tables import RECALLS, PartRow, closing_table, comparison_table, parts_table, plain

COSTS = {
    "params/trainable": 123_456,
    "params/total": 4_000_000,
    "params/adapter_share": 0.0267,
    "time/step_s": 0.07123,
}


def cells(text: str, label: str) -> list[str]:
    """The cells of the line that begins with a label."""
    [line] = [line.strip() for line in text.splitlines() if line.strip().startswith(label + "  ")]
    return re.split(r" {2,}", line)


def figures(prefix: str, first: float) -> dict[str, float]:
    return {f"{prefix}/{name}": first + number for number, name in enumerate(RECALLS)}


def test_closing_table__zero_shot_against_adapted() -> None:
    text = plain(closing_table(figures("zero_shot", 10.25) | figures("test", 60.5) | COSTS))
    assert cells(text, "zero-shot") == ["zero-shot", *(f"{10.25 + number:.2f}" for number in range(7))]
    assert cells(text, "adapted") == ["adapted", *(f"{60.5 + number:.2f}" for number in range(7))]
    assert cells(text, "gain") == ["gain", *["+50.25"] * 7]
    assert "trained: 123,456 of 4,000,000 parameters (3.09%)" in text
    assert "added by the adapter: 2.67% of the backbone" in text
    assert "0.071 s a step" in text


def test_closing_table__one_line_and_the_thousands() -> None:
    text = plain(closing_table(figures("val", 20.0) | figures("val/1k", 40.0), split="val"))
    assert "Retrieval on the val split" in text
    assert cells(text, "adapted")[1] == "20.00"
    assert cells(text, "adapted, 1K")[1] == "40.00"
    assert "zero-shot" not in text
    assert "gain" not in text
    assert "parameters" not in text


def test_closing_table__before_re_ranking() -> None:
    text = plain(closing_table(figures("test", 60.5) | figures("test/cosine", 40.0) | COSTS))
    assert cells(text, "adapted")[1] == "60.50"
    assert cells(text, "adapted, by cosine alone")[1] == "40.00"


def test_closing_table__without_training_it_is_zero_shot() -> None:
    text = plain(closing_table(figures("test", 20.0) | COSTS | {"params/trainable": 0}))
    assert cells(text, "zero-shot")[1] == "20.00"
    assert "adapted" not in text


def test_parts_table__rows_and_sum() -> None:
    rows = [PartRow("backbone.blocks", 0, 900, 0.0, 0), PartRow("heads.vision", 100, 100, 0.1, 0)]
    text = plain(parts_table(rows))
    assert cells(text, "backbone.blocks") == ["backbone.blocks", "0", "900", "0.00%"]
    assert cells(text, "heads.vision") == ["heads.vision", "100", "100", "10.00%"]
    assert cells(text, "all") == ["all", "100", "1,000", "10.00%"]
    assert "unused" not in text
    text = plain(parts_table([rows[0], rows[1]._replace(unused=40)]))
    assert cells(text, "heads.vision")[-1] == cells(text, "all")[-1] == "40"


def facts(**known: Any) -> Facts:
    """What our figures are of, as far as a test needs it."""
    people = {"model": "m", "weights": "w", "data": "coco", "split": "test", "protocol": "p"}
    compared = {"backbone": "beit3_base", "our_split": "test", "images": 5000, "resolution": 224}
    return Facts(**{"training": None, "scores": None, **people, **compared, **known})


def test_comparison_table__both_sides() -> None:
    ours = facts(weights="adapter.safetensors", data="coco", resolution=224, training="adapted")
    comparison = compare("beit3_base_coco", {"test/i2t_r1": 79.0, "test/t2i_r1": 55.0}, ours)
    text = plain(comparison_table(comparison))
    assert cells(text, "resolution") == ["resolution", "224 px", "384 px", "differs !"]
    assert cells(text, "split") == ["split", "test", "Karpathy test (5K)", "same"]
    assert cells(text, "weights")[1] == "adapter.safetensors"
    assert cells(text, "protocol")[1] == "p"
    assert cells(text, "i2t_r1") == ["i2t_r1", "79.00", "79.10", "-0.10"]
    assert cells(text, "t2i_r1") == ["t2i_r1", "55.00", "61.40", "-6.40 !"]
    assert "tolerance 0.5 points either way; source: microsoft/unilm, beit3/README.md" in text


def test_comparison_table__what_is_not_stated_or_verified() -> None:
    ours = facts()
    metrics = {f"test/{name}": 80.0 for name in RECALLS}
    text = plain(comparison_table(compare("beit3_giant_coco", metrics, ours)))
    assert cells(text, "resolution")[2:] == ["not stated", "not known"]
    assert "(not verified)" in " ".join(text.split())
    assert not any(line != line.rstrip() for line in text.splitlines())
