"""One table over many runs: in what they differ, and what came out."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mwa_lightning.errors import ConfigError
from mwa_lightning.sweeps.folder import RECORD, SweepFolder
from mwa_lightning.system.plain_files import read_json, read_yaml
from mwa_lightning.training.runs.run_directory import FINISHED, FREE_KEYS

THROUGH = "through"
# What says which part of a kind was chosen; the other keys of the part are compared among runs with the same part.
_IDENTITY = ("layout", "name", "_target_")
# The data that a run was trained on, and that it was evaluated on.
_DATA = ("data.train_sha256", "data.sha256")


@dataclass(frozen=True)
class Run:
    """A run as its directory has it: flat settings and figures, empty where it has not come to them."""

    label: str
    state: str
    settings: Mapping[str, Any]
    figures: Mapping[str, float]

    @property
    def monitor(self) -> str | None:
        """The figure on the validation split that its best epoch was chosen by."""
        monitor = self.settings.get("training.monitor")
        return monitor if isinstance(monitor, str) else None

    @property
    def split(self) -> str:
        """The split that it is evaluated on."""
        split = self.settings.get("split")
        return split if isinstance(split, str) else "test"

    @property
    def verdicts(self) -> list[str]:
        """What was wrong with its training: `collapsed`, `dead`, `diverging` or `stuck`."""
        found = [name.removeprefix("train/") for name in self.figures if name.startswith("train/")]
        return [name.removesuffix("_at_step") for name in found if name.endswith("_at_step")]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs of folders: sweeps, run directories, or whatever has such below it.

    Raises ConfigError for a folder without any.
    """
    runs: list[Run] = []
    seen: set[Path] = set()
    folders = list({folder.resolve(): folder for folder in folders}.values())
    names = [folder.name for folder in folders]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: there is no such folder")
        label = folder.name if names.count(folder.name) == 1 else str(folder)
        listed = any(path.is_relative_to(folder.resolve()) for path in seen)
        found = _found_in(folder, [label] if len(folders) > 1 else [], seen=seen)
        if not found and not listed:
            raise ConfigError(f"{folder}: neither it nor a folder below it is a run directory, with config.yaml in it")
        runs += found
    return runs


def _found_in(folder: Path, labels: list[str], *, seen: set[Path]) -> list[Run]:
    """The runs of a folder; what was `seen` before, by a link or as a part of another folder, is not listed again."""
    if _again(folder, seen):
        return []
    label = "/".join(labels) or folder.name
    unreadable = []
    if (folder / RECORD).is_file():
        sweep = SweepFolder(folder)
        try:
            return [
                read_run(sweep.run(job).path, "/".join([*labels, str(job.number)]), noted=_noted(job.notes))
                for job in sweep.read()
                if not _again(sweep.run(job).path, seen)
            ]
        except ConfigError:  # Hydra leaves a file of that name too
            unreadable = [Run(label, f"{RECORD} cannot be read", {}, {})]
    if os.path.lexists(folder / "config.yaml"):  # also what is no file: it is named then
        return [*unreadable, read_run(folder, label)]
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read ({error.strerror})") from error
    return [*unreadable, *(run for path in below for run in _found_in(path, [*labels, path.name], seen=seen))]


def _again(folder: Path, seen: set[Path]) -> bool:
    """Whether a folder was seen before; from now on it was."""
    where = folder.resolve()
    before = where in seen
    seen.add(where)
    return before


def read_run(path: Path, label: str, *, noted: str | None = None) -> Run:
    """A run from its directory; `noted` is how its sweep has seen it end. A file that is damaged is its state."""
    config: dict[str, Any] = {}
    measured: dict[str, float] = {}
    file = path / "config.yaml"
    try:
        if os.path.lexists(file):
            config = _flat(read_yaml(file))
        file = path / "metrics.json"
        if os.path.lexists(file):
            measured = {name: _number(value) for name, value in read_json(file).items()}
        file = path / "provenance.json"
        if os.path.lexists(file) and config:
            config |= _data_of(read_json(file), config)
    except (ValueError, OverflowError, AttributeError, TypeError, KeyError, OSError, RecursionError):
        return Run(label, f"{file.name} cannot be read", config, {})
    evaluation = "expect" in config  # a key of evaluations only
    if FINISHED in measured or (evaluation and measured):
        state = THROUGH
    elif noted is not None:
        state = noted
    else:
        state = "not finished" if config else "not started"
    return Run(label, state, config, measured)


def _number(value: Any) -> float:
    """A metric. Raises TypeError if it is no number, OverflowError if it is too large for one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _data_of(provenance: Any, config: Mapping[str, Any]) -> dict[str, str]:
    """What tells the data of a run, as if it were settings."""
    evaluated = provenance["metrics"].get(config.get("split", "test"), {}).get("data")
    identities = zip(_DATA, (provenance["inputs"].get("data", {}).get("train"), evaluated), strict=True)
    return {key: str(identity["sha256"])[:12] for key, identity in identities if identity is not None}


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings that runs differ in, each with its value in every run.

    A part of another kind is one difference, by its name (`adapter`: mwa, head_only); its keys count among runs that
    have the same part. What changes nothing of the result is left out; where the data differ, their folders are named.
    """
    known = [run for run in runs if run.settings]
    others = [key for key in _DATA if len({run.settings[key] for run in known if key in run.settings}) > 1]
    columns: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for run in known for key in run.settings):
        part, _, name = key.rpartition(".")
        if key in (*_DATA, "data.root"):
            if key in others or (others and key == "data.root"):
                columns[key] = [_text(run.settings.get(key, "")) for run in runs]
            continue
        if key in FREE_KEYS or key == "name" or part == "logger":
            continue
        if name in _IDENTITY and part:
            column, values = part, {_identity(run, part) for run in known}
            if len(values) > 1:
                columns.setdefault(column, [_identity(run, column) for run in runs])
            continue
        seen: dict[str, set[str]] = {}
        for run in known:
            seen.setdefault(_identity(run, part), set()).add(_text(run.settings.get(key)))
        if any(len(values) > 1 for values in seen.values()):
            columns[key] = [_text(run.settings[key]) if key in run.settings else "" for run in runs]
    return columns


def table(
    runs: Sequence[Run], *, figures: Sequence[str] | None = None, sort: str | None = None, exact: bool = False
) -> list[list[str]]:
    """Headings and rows: the run, its differing settings, its state, figures; best by `sort` first, unfinished last.

    `sort` is by default the figure that the runs monitor, `figures` that one, its like on the evaluated split,
    trained parameters and seconds. Figures have two decimals, settings four digits, unless `exact`.

    The state says too what was wrong with the training. Each column has a heading of its own: the key `run` of
    evaluations is `config.run`.

    Raises ConfigError if no run that is through has a figure that is asked for.
    """
    asked = [*(figures or []), *([sort] if sort else [])]
    monitors = dict.fromkeys(run.monitor for run in runs if run.monitor)
    by = sort or next(iter(monitors), None)
    if figures is None:
        of_splits = [
            f"{split}/{monitor.partition('/')[2]}"
            for monitor in monitors
            for split in dict.fromkeys(["val", *(run.split for run in runs if run.settings)])
        ]
        figures = [*dict.fromkeys([*monitors, *of_splits]), "params/trainable", FINISHED]
        figures = [name for name in figures if any(name in run.figures for run in runs)] or of_splits
    figures = list(dict.fromkeys(figures))
    through = [run for run in runs if run.state == THROUGH]
    for name in asked:
        if through and not any(name in run.figures for run in through):
            have = ", ".join(sorted(set().union(*(run.figures for run in through))))
            raise ConfigError(f"no run has the metric {name}; take one of {have}")
    settings = differing(runs)
    headings = [f"config.{key}" if key in ("run", "state") else key for key in settings]
    rows = []
    for place, run in enumerate(runs):
        state = ", ".join([run.state, *run.verdicts])
        chosen = [values[place] if exact else _short(values[place]) for values in settings.values()]
        rows.append((run, [run.label, *chosen, state, *_cells(run, figures, exact=exact)]))
    rows.sort(key=lambda row: _place(row[0], by))
    return [["run", *headings, "state", *figures], *(cells for _, cells in rows)]


def as_csv(rows: Sequence[Sequence[str]]) -> str:
    """A table as comma-separated values."""
    text = io.StringIO()
    for row in rows:
        line = io.StringIO()
        csv.writer(line).writerow(row)  # whose line end, `\r\n`, has it quote both
        text.write(line.getvalue().removesuffix("\r\n") + "\n")
    return text.getvalue()


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown; what stands in several lines is put in one."""
    lines = ["| " + " | ".join(" ".join(cell.splitlines()).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def _place(run: Run, by: str | None) -> tuple[int, float]:
    """What runs are sorted by: those through, best first, then those through without such a figure, then the others."""
    figure = run.figures.get(by or "", math.nan)
    if run.state != THROUGH or math.isnan(figure):
        return (2 if run.state != THROUGH else 1, 0.0)
    return (0, -figure)


def _noted(notes: Mapping[str, Any]) -> str | None:
    """The state of a run that is not through, as far as its sweep has noted it."""
    if notes.get("pruned") is not None:
        return f"pruned after epoch {notes['pruned']}"
    return None if notes.get("failed") is None else str(notes["failed"])


def _cells(run: Run, figures: Sequence[str], *, exact: bool) -> list[str]:
    def text(value: float) -> str:
        whole = float(value).is_integer()
        return str(int(value)) if whole and (exact or abs(value) >= 1000) else repr(value) if exact else f"{value:.2f}"

    return [text(run.figures[name]) if name in run.figures else "" for name in figures]


def _identity(run: Run, part: str) -> str:
    """The name of the part that a run has: its layout, its name, or the file of its class."""
    for key in _IDENTITY:
        value = run.settings.get(f"{part}.{key}")
        if value is not None:
            return str(value).split(".")[-2:][0] if key == "_target_" else str(value)
    return ""


def _short(text: str) -> str:
    """A fraction with many digits, as the searches' are, by its first four; whole numbers and names as they are."""
    try:
        number = float(text)
    except ValueError:
        return text
    fraction = math.isfinite(number) and not number.is_integer()
    return f"{number:.4g}" if fraction and len(text) > 8 else text


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
