"""What every layout of statements asks of a sample, and the splits that come of those that have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from mwa_lightning.data.files.json_lines import Line
from mwa_lightning.data.files.problems import Problems, has_words
from mwa_lightning.data.samples.statements import StatementBuilder, StatementSplit


class StatementReader:
    """Takes samples in file order and reports those that cannot be used.

    Args:
        folder: What the paths of images are relative to.
        classes: What labels may say, in the order in which they are numbered.
        problems: Where a sample that cannot be used is reported.
        official: Only a blank statement counts as one without words: what the published files hold is used
            as it is.
    """

    def __init__(self, *, folder: PurePath, classes: Sequence[str], problems: Problems, official: bool) -> None:
        self._folder = folder
        self._classes = tuple(classes)
        self._numbers = {name: number for number, name in enumerate(classes)}
        self._problems = problems
        self._official = official
        self._builders: dict[str, StatementBuilder] = {}
        self._image_ids: dict[str, int] = {}
        self._groups: dict[str, int] = {}
        self._seen: dict[str, str] = {}

    def add(
        self,
        line: Line,
        *,
        split: str,
        identifier: str,
        text: Any,
        label: str,
        images: Sequence[str],
        group: str | None = None,
    ) -> None:
        """Take one sample.

        Args:
            line: Where it stands.
            split: The split that it belongs to.
            identifier: Its name, which no other sample may have.
            text: The statement.
            label: What the file says of it.
            images: Paths of its images.
            group: What instances of the same sentence have in common, where the layout tells.
        """
        where = f"{line.where} ({identifier})"
        if not isinstance(text, str):
            self._problems.bad_row("unusable entry", f"{where} lacks a statement: add it", split=split)
        elif not (text.strip() if self._official else has_words(text)):
            self._problems.bad_row(
                "statement without words",
                f"{where}: the statement has no words ({text[:40]!r}): write some, or leave the sample out",
                split=split,
            )
        elif label not in self._numbers:
            self._problems.bad_row(
                "label outside the classes",
                f"{where} has the label {label!r}, which is none of the classes {', '.join(self._classes)}: "
                "correct it, or leave the sample out",
                split=split,
            )
        elif identifier in self._seen:
            self._problems.bad_row(
                "identifier used twice",
                f"{where} has the identifier of another, {self._seen[identifier]}: give each sample its own",
                split=split,
            )
        else:
            self._seen[identifier] = line.where
            if split not in self._builders:
                self._builders[split] = StatementBuilder(name=split, folder=self._folder, classes=self._classes)
            self._builders[split].add(
                images=[(path, self._image_ids.setdefault(path, len(self._image_ids))) for path in images],
                text=text,
                identifier=identifier,
                label=self._numbers[label],
                group=None if group is None else self._groups.setdefault(group, len(self._groups)),
            )

    def build(self, subsets: Mapping[str, Mapping[str, Iterable[str]]] | None = None) -> dict[str, StatementSplit]:
        """The splits by name; `subsets` lists, for a split, the identifiers of each of its named subsets."""
        given = subsets or {}
        return {name: builder.build(given.get(name)) for name, builder in self._builders.items()}
