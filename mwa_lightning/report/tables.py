"""Tables for the terminal and, as plain text, for the log."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mwa_lightning.report.published_results import Comparison, Facts

# Width of the plain form, in characters.
PLAIN_WIDTH = 110

RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "mean_recall")

# What needs no looking at one of the sides, by the names of the figures.
NOT_LOOKING = {
    "majority": "always the most common answer",
    "text_bound": "at most, from the text alone",
    "images_bound": "at most, from the images alone",
}


class PartRow(NamedTuple):
    """One part of a model: how many of its parameters train.

    `share` is of all parameters of the model; `unused` of the trainable ones are declared to get no gradient.
    """

    part: str
    trainable: int
    total: int
    share: float
    unused: int


def parts_table(rows: Sequence[PartRow]) -> Table:
    """What trains, part by part, with a last line for the whole model."""
    unused = any(row.unused for row in rows)
    table = Table(title="What trains", box=box.SIMPLE_HEAD)
    table.add_column("part")
    for heading in ("trained", "of", "share of the model", *(["declared unused"] if unused else [])):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [row.part, f"{row.trainable:,}", f"{row.total:,}", f"{row.share:.2%}"]
        style = None if row.trainable else "dim"
        table.add_row(*cells, *([f"{row.unused:,}"] if unused else []), style=style)
    trainable, total = sum(row.trainable for row in rows), sum(row.total for row in rows)
    table.add_section()
    cells = ["all", f"{trainable:,}", f"{total:,}", f"{trainable / total:.2%}"]
    table.add_row(*cells, *([f"{sum(row.unused for row in rows):,}"] if unused else []), style="bold")
    return table


def closing_table(metrics: Mapping[str, float], *, split: str = "test", remark: str | None = None) -> Table:
    """The end of a run: zero-shot against adapted where both were measured, then what it cost.

    Reads `zero_shot/*`, the split's figures, `params/trainable`, `params/total`, `params/adapter_share` and
    `time/step_s`, each where it is there. Where nothing trains, the split's figures are the zero-shot ones. Accuracies
    of statements stand beside that of always giving the same answer. A `remark` on the result stands below.
    """
    if f"{split}/accuracy" in metrics:
        return _accuracy_table(metrics, split=split, remark=remark)
    title = f"Retrieval on the {split} split, in percent"
    table = Table(title=title, box=box.SIMPLE_HEAD, caption=_below(metrics, remark))
    table.caption_justify = "left"
    table.add_column("")
    for heading in ("i→t R@1", "R@5", "R@10", "t→i R@1", "R@5", "R@10", "mean"):
        table.add_column(heading, justify="right")
    ours = "adapted" if metrics.get("params/trainable", 1) else "zero-shot"
    lines = {
        label: [metrics[f"{prefix}/{figure}"] for figure in RECALLS]
        for label, prefix in (
            ("zero-shot", "zero_shot"),
            (ours, split),
            (f"{ours}, by cosine alone", f"{split}/cosine"),
            (f"{ours}, 1K", f"{split}/1k"),
        )
        if f"{prefix}/mean_recall" in metrics
    }
    for label, values in lines.items():
        table.add_row(label, *(f"{value:.2f}" for value in values), style="bold" if label == "adapted" else None)
    if "zero-shot" in lines and "adapted" in lines:
        table.add_section()
        pairs = zip(lines["zero-shot"], lines["adapted"], strict=True)
        table.add_row("gain", *(f"{after - before:+.2f}" for before, after in pairs))
    return table


def _accuracy_table(metrics: Mapping[str, float], *, split: str, remark: str | None) -> Table:
    """Accuracy and consistency, of the whole split and of its named subsets."""
    title = f"Statements on the {split} split, in percent"
    table = Table(title=title, box=box.SIMPLE_HEAD, caption=_below(metrics, remark))
    table.caption_justify = "left"
    table.add_column("")
    for heading in ("accuracy", "consistency"):
        table.add_column(heading, justify="right")
    adapted = "adapted" if metrics.get("params/trainable", 1) else "fine-tuned"
    subsets = [name.split("/")[1] for name in metrics if re.fullmatch(rf"{split}/[^/]+/accuracy", name)]
    lines = [(adapted, split), *((f"{adapted}, {subset}", f"{split}/{subset}") for subset in subsets)]
    for label, prefix in lines:
        cells = (metrics.get(f"{prefix}/{figure}") for figure in ("accuracy", "consistency"))
        style = "bold" if prefix == split else None
        table.add_row(label, *("" if cell is None else f"{cell:.2f}" for cell in cells), style=style)
    table.add_section()
    for figure, label in NOT_LOOKING.items():
        if f"{split}/{figure}" in metrics:
            table.add_row(label, f"{metrics[f'{split}/{figure}']:.2f}", "")
    return table


def comparison_table(comparison: Comparison) -> Table:
    """Ours beside the published figures, with what each is of."""
    entry = comparison.published
    table = Table(title=f"Expected: {entry.name}", box=box.SIMPLE_HEAD)
    for heading in ("", "ours", "published"):
        table.add_column(heading, overflow="fold")
    table.add_column("difference", justify="right")
    for fact, same in comparison.agreement.items():
        verdict = "not known" if same is None else "same" if same else "differs !"
        style = "bold red" if same is False else None
        table.add_row(fact, _fact(comparison.ours, fact), _fact(entry.facts, fact), verdict, style=style)
    table.add_section()
    for row in comparison.rows:
        verdict = "" if row.within else " !"
        style = None if row.within else "bold red"
        cells = (row.figure, f"{row.ours:.2f}", f"{row.published:.2f}", f"{row.difference:+.2f}{verdict}")
        table.add_row(*cells, style=style)
    verified = "" if entry.verified else " (not verified)"
    table.caption = Text(f"tolerance {entry.tolerance} points either way; source: {entry.source}{verified}")
    table.caption_justify = "left"
    return table


def plain(table: Table) -> str:
    """The table as text without colours, for `train.log`."""
    console = Console(file=io.StringIO(), width=PLAIN_WIDTH, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")


def _below(metrics: Mapping[str, float], remark: str | None) -> Text:
    """The remark, then trainable parameters and seconds a step, as far as they are known."""
    parts = [] if remark is None else [remark]
    if "params/trainable" in metrics:
        trainable, total = int(metrics["params/trainable"]), int(metrics["params/total"])
        parts.append(f"trained: {trainable:,} of {total:,} parameters ({trainable / total:.2%})")
        parts.append(f"added by the adapter: {metrics['params/adapter_share']:.2%} of the backbone")
    if "time/step_s" in metrics:
        parts.append(f"{metrics['time/step_s']:.3f} s a step")
    return Text("\n".join(parts))


def _fact(facts: Facts, name: str) -> str:
    value = getattr(facts, name)
    if value is None:
        return "not stated"
    return f"{value} px" if name == "resolution" else str(value)
