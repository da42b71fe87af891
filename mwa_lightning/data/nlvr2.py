"""NLVR2 in its official files: statements about two photographs that are true or false.

A line holds `identifier` (split-set-pair-sentence), `sentence`, `label` ("True" or "False") and, in `train`,
`directory`; writers, judgments, queries and addresses are passed over. The images of a line are named after
its identifier without the last field: `<stem>-img0.png` on the left and `<stem>-img1.png` on the right.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from mwa_lightning.data.lines import Line, read_lines
from mwa_lightning.data.problems import Problems
from mwa_lightning.data.statement_reader import StatementReader
from mwa_lightning.data.statements import StatementSplit
from mwa_lightning.data.stores import PictureStore

OFFICIAL_NAMES = {"train": "train", "val": "dev", "test": "test1"}
CLASSES = ("False", "True")
SUBSETS = ("balanced", "unbalanced")

_WANTED = "identifier, sentence and label"
_FIELDS = 4  # of an identifier


def split_files(annotations: Path) -> dict[str, Path]:
    """The file of each split."""
    return {split: annotations / f"{official}.json" for split, official in OFFICIAL_NAMES.items()}


def subset_files(annotations: Path, split: str) -> dict[str, Path]:
    """The files of the subsets of a split that are there."""
    files = {name: annotations / name / f"{name}_{OFFICIAL_NAMES[split]}.json" for name in SUBSETS}
    return {name: file for name, file in files.items() if file.is_file()}


def read_nlvr2(
    annotations: Path, *, store: PictureStore, problems: Problems, classes: tuple[str, ...] = CLASSES
) -> dict[str, StatementSplit]:
    """The splits whose files are there; `val` is dev, `test` is test1, the public test set (test-P).

    Instances of one sentence form a group by the rule of the official evaluation: the same identifier but for
    its third field. The balanced and unbalanced subsets are known where their files are there.

    Args:
        annotations: Folder of the JSON files.
        store: What holds the images, as `images/train/<directory>/`, `images/dev/` and `images/test1/`, or
            as `train/...`, `dev/` and `test1/`, as some of them come in the official archives.
        problems: Where a damaged file, or a line that cannot be used, is reported.
        classes: The two labels, in the order in which they are numbered.
    """
    reader = StatementReader(folder=store.prefix, classes=classes, problems=problems, official=True)
    subsets = {}
    for split, file in split_files(annotations).items():
        if not file.is_file():
            continue
        place = _place_of_images(store, OFFICIAL_NAMES[split])
        identifiers: set[str] = set()
        known = len(problems.found)
        for line in read_lines(file, wanted=_WANTED, problems=problems):
            identifier = _identifier(line, problems)
            if identifier is None:
                continue
            identifiers.add(identifier)
            stem = identifier.rpartition("-")[0]
            directory = str(line.record.get("directory", ""))
            reader.add(
                line,
                split=split,
                identifier=identifier,
                text=line.record.get("sentence"),
                label=str(line.record.get("label")).capitalize(),
                images=[str(place / directory / f"{stem}-img{side}.png") for side in range(2)],
                group=_group(identifier),
            )
        if not identifiers and len(problems.found) == known:
            problems.add("no statements", f"{file} lists no statements: fetch it again")
        subsets[split] = dict(_subsets(annotations, split, identifiers, problems))
    return reader.build(subsets)


def _identifier(line: Line, problems: Problems) -> str | None:
    identifier: Any = line.record.get("identifier")
    if not isinstance(identifier, str) or not identifier.strip():
        problems.add("unusable entry", f"{line.where} lacks an identifier: write {_WANTED}")
        return None
    if len(identifier.split("-")) < _FIELDS:
        problems.add(
            "unusable entry",
            f"{line.where} has the identifier {identifier!r}, which is not of the form split-set-pair-sentence: "
            "correct it",
        )
        return None
    return identifier


def _group(identifier: str) -> str:
    """What the identifiers of one sentence have in common."""
    fields = identifier.split("-")
    fields[2] = ""
    return "-".join(fields)


def _place_of_images(store: PictureStore, official: str) -> PurePath:
    """Where the images of a split lie; where neither form is there, as the official page has it."""
    under, beside = PurePath("images", official), PurePath(official)
    return beside if store.holds_folder(beside) and not store.holds_folder(under) else under


def _subsets(
    annotations: Path, split: str, identifiers: set[str], problems: Problems
) -> Iterator[tuple[str, set[str]]]:
    for name, file in subset_files(annotations, split).items():
        members = {str(line.record.get("identifier")) for line in read_lines(file, wanted=_WANTED, problems=problems)}
        strangers = len(members - identifiers)
        if strangers:
            problems.note(
                f"{file}: {strangers:,} of {len(members):,} identifiers are not in {OFFICIAL_NAMES[split]}.json "
                "and do not count"
            )
        yield name, members
