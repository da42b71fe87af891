"""Labelled statements about images as JSON lines: one's own, and SNLI-VE in its official files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from mwa_lightning.data.annotation_files import AnnotationNames
from mwa_lightning.data.lines import Line, read_lines
from mwa_lightning.data.problems import Problems
from mwa_lightning.data.splitting import assign_splits, split_named
from mwa_lightning.data.statement_reader import StatementReader
from mwa_lightning.data.statements import StatementSplit
from mwa_lightning.data.tables import read_rows
from mwa_lightning.errors import shorten

# In the order of ALBEF's and ModeX's heads.
ENTAILMENT_CLASSES = ("contradiction", "neutral", "entailment")

_WANTED = "image (or images), text and label"
_SNLI_VE_WANTED = "Flickr30K_ID, sentence2 and gold_label"
SNLI_VE_NAMES = AnnotationNames(
    "snli_ve_{}.jsonl", "ve_{}.json", words={"train": ("train",), "val": ("dev", "val"), "test": ("test",)}
)
_IMAGE_KEYS = ("Flickr30K_ID", "Flikr30kID", "Flickr30kID", "image")
_TEXT_KEYS = ("sentence2", "sentence")
_LABEL_KEYS = ("gold_label", "label")
_NO_AGREEMENT = "-"


class _Row(NamedTuple):
    line: Line
    images: list[str]
    label: str | int


def read_jsonl(
    annotations: Path, *, folder: PurePath, problems: Problems, classes: Sequence[str] | None = None
) -> dict[str, StatementSplit]:
    """The splits of one's own statements.

    A line holds `image` (a path) or `images` (several, the same number in every line), `text`, `label`, and
    where wanted `split` and `identifier`. Without a split, 90 % of the samples go to train, 5 % to val and
    5 % to test by a hash of their images' paths: the statements about the same images stay together.

    Args:
        annotations: The file.
        folder: What the paths are relative to.
        problems: Where a damaged file, or a line that cannot be used, is reported.
        classes: What labels may say, in the order in which they are numbered; None = the labels of the file,
            sorted (by value where all are whole numbers).
    """
    rows: list[_Row] = []
    for line in read_lines(annotations, wanted=_WANTED, problems=problems):
        images, label = _images(line, problems), _label(line, problems)
        if images is None or label is None or not _split_known(line, problems):
            continue
        if rows and len(images) != len(rows[0].images):
            first = rows[0]
            problems.bad_row(
                "another number of images",
                f"{line.where} has {len(images)} images, line {first.line.number} has {len(first.images)}: give every "
                "sample the same number",
            )
            continue
        rows.append(_Row(line, images, label))
    if not rows and not problems.found:
        problems.add("no statements", f"{annotations} lists no statements: write {_WANTED} of each")
    names = tuple(classes) if classes is not None else _classes(rows, annotations, problems)
    reader = StatementReader(folder=folder, classes=names, problems=problems, official=False)
    places = [(row.line.where, row.line.record.get("split"), "\n".join(sorted(row.images))) for row in rows]
    for row, split in zip(rows, assign_splits(places, problems), strict=True):
        if split is not None:
            reader.add(
                row.line,
                split=split,
                identifier=str(row.line.record.get("identifier", f"{annotations.stem}-{row.line.number}")),
                text=row.line.record.get("text"),
                label=str(row.label),
                images=row.images,
            )
    return reader.build()


def read_snli_ve(
    annotations: Path, *, folder: PurePath, problems: Problems, classes: tuple[str, ...] = ENTAILMENT_CLASSES
) -> dict[str, StatementSplit]:
    """The splits of SNLI-VE whose files are there; `val` is dev.

    In the official files a line holds the number of its Flickr30K image, `sentence2` (the statement), `gold_label`
    and `pairID`; ALBEF and LAVIS have a JSON list of `image`, `sentence` and `label` for each split. Lines whose
    annotators did not agree, labelled "-", are left out and counted.

    Args:
        annotations: Folder of the files, or one of them.
        folder: Folder of the images.
        problems: Where a damaged file, or a line that cannot be used, is reported.
        classes: The labels, in the order in which they are numbered.
    """
    reader = StatementReader(folder=folder, classes=classes, problems=problems, official=True)
    known_keys = (*_IMAGE_KEYS, *_TEXT_KEYS, *_LABEL_KEYS)
    for split, file in SNLI_VE_NAMES.split_files(annotations).items():
        if not file.is_file():
            continue
        left_out = count = 0
        known = len(problems.found)
        for line in read_rows(file, wanted=_SNLI_VE_WANTED, known=known_keys, problems=problems):
            count += 1
            image, text, label = (_first(line.record, keys) for keys in (_IMAGE_KEYS, _TEXT_KEYS, _LABEL_KEYS))
            if label == _NO_AGREEMENT:
                left_out += 1
            elif not isinstance(image, str | int) or isinstance(image, bool) or not str(image).strip():
                problems.add("unusable entry", f"{line.where} lacks the number of its image: write {_SNLI_VE_WANTED}")
            else:
                reader.add(
                    line,
                    split=split,
                    identifier=str(line.record.get("pairID", f"{file.stem}-{line.number}")),
                    text=text,
                    label=str(label),
                    images=[f"{str(image).removesuffix('.jpg')}.jpg"],
                )
        if left_out:
            problems.note(f'{file}: {left_out:,} lines with the label "{_NO_AGREEMENT}" are left out')
        if not count and len(problems.found) == known:
            problems.add("no statements", f"{file} lists no statements: fetch it again")
    return reader.build()


def _first(record: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((record[key] for key in keys if key in record), None)


def _images(line: Line, problems: Problems) -> list[str] | None:
    given: Any = line.record.get("images", line.record.get("image"))
    paths = [given] if isinstance(given, str) else given
    if isinstance(paths, list) and paths and all(isinstance(path, str) and path.strip() for path in paths):
        return [os.path.normpath(path) for path in paths]
    problems.bad_row("unusable entry", f"{line.where} lacks the path of an image, or gives no text: write {_WANTED}")
    return None


def _label(line: Line, problems: Problems) -> str | int | None:
    label = line.record.get("label")
    if isinstance(label, bool):
        return str(label)
    if isinstance(label, int) or (isinstance(label, str) and label.strip()):
        return label
    problems.bad_row("unusable entry", f"{line.where} lacks a label that is a word or a whole number: write {_WANTED}")
    return None


def _split_known(line: Line, problems: Problems) -> bool:
    split = line.record.get("split")
    if split is None or split_named(split) is not None:
        return True
    problems.bad_row("unusable entry", f"{line.where} is of the split {split!r}: write train, val or test")
    return False


def _classes(rows: Sequence[_Row], annotations: Path, problems: Problems) -> tuple[str, ...]:
    """The labels that occur, sorted."""
    labels = {row.label for row in rows}
    numbers = [label for label in labels if isinstance(label, int)]
    ordered = [str(number) for number in sorted(numbers)] if len(numbers) == len(labels) else sorted(map(str, labels))
    if rows and len(ordered) < 2:
        problems.add(
            "one class",
            f"{annotations} has but the label {shorten(ordered)}: give statements of two classes or more, or name the "
            "classes in data.classes",
        )
    return tuple(dict.fromkeys(ordered))
