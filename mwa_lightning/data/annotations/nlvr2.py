"""NLVR2: statements about two photographs that are true or false.

In the official files a line holds `identifier` (split-set-pair-sentence), `sentence`, `label` ("True" or "False")
and, in `train`, `directory`; writers, judgments, queries and addresses are passed over. The images of a line are
named after its identifier without the last field: `<stem>-img0.png` on the left and `<stem>-img1.png` on the right.

BLIP, ALBEF and LAVIS have a JSON list of `images` (two paths), `sentence` and `label` for each split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from mwa_lightning.data.annotations.annotation_files import AnnotationNames
from mwa_lightning.data.annotations.statement_reader import StatementReader
from mwa_lightning.data.files.json_lines import Line
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.samples.labels import Classes
from mwa_lightning.data.samples.statements import StatementSplit
from mwa_lightning.data.tables.rows import read_rows
from mwa_lightning.errors import counted

OFFICIAL_NAMES = {"train": "train", "val": "dev", "test": "test1"}
NAMES = AnnotationNames(
    "{}.json",
    "nlvr_{}.json",
    "nlvr2_{}.json",
    words={"train": ("train",), "val": ("dev", "val"), "test": ("test1", "test")},
)
CLASSES = ("False", "True")
SUBSETS = ("balanced", "unbalanced")

_WANTED = "identifier, sentence and label"
_KEYS = ("identifier", "sentence", "label", "directory", "images")
_FIELDS = 4  # of an identifier


def subset_files(annotations: Path, split: str) -> dict[str, Path]:
    """The files of the subsets of a split that are there."""
    annotations = annotations if annotations.is_dir() else annotations.parent
    files = {name: annotations / name / f"{name}_{OFFICIAL_NAMES[split]}.json" for name in SUBSETS}
    return {name: file for name, file in files.items() if file.is_file()}


def read_nlvr2(
    annotations: Path, *, folder: PurePath, problems: Problems, classes: tuple[str, ...] = CLASSES
) -> dict[str, StatementSplit]:
    """The splits whose files are there; `val` is dev, `test` is test1, the public test set (test-P).

    Of the official files, instances of one sentence form a group by the rule of the official evaluation: the same
    identifier but for its third field. The balanced and unbalanced subsets are known where their files are there.

    Args:
        annotations: Folder of the JSON files, or one of them.
        folder: Folder of the images.
        problems: Where a damaged file, or a line that cannot be used, is reported.
        classes: The two labels, in the order in which they are numbered.
    """
    reader = StatementReader(folder=folder, classes=classes, problems=problems, official=True)
    known_classes = Classes(classes)
    subsets = {}
    for split, file in NAMES.split_files(annotations).items():
        if not file.is_file():
            continue
        identifiers: set[str] = set()
        known, count = len(problems.found), 0
        problems.split = split
        for line in read_rows(file, wanted=_WANTED, known=_KEYS, problems=problems):
            count += 1
            if "identifier" in line.record or "images" not in line.record:
                identifier = _identifier(line, problems)
                images = None if identifier is None else _official_images(line, identifier, OFFICIAL_NAMES[split])
                group = None if identifier is None else _group(identifier)
            else:
                identifier, images, group = f"{file.stem}-{line.number}", _listed_images(line, problems), None
            if identifier is None or images is None:
                continue
            identifiers.add(identifier)
            reader.add(
                line,
                split=split,
                identifier=identifier,
                text=line.record.get("sentence"),
                label=known_classes.of(str(line.record.get("label"))),
                images=images,
                group=group,
            )
        if not count and len(problems.found) == known:
            problems.add("no statements", f"{file} lists no statements: fetch it again")
        problems.split = None
        subsets[split] = dict(_subsets(annotations, split, file, identifiers, problems))
    return reader.build(subsets)


def _official_images(line: Line, identifier: str, official: str) -> list[str]:
    """Where the images lie by the official page."""
    stem = identifier.rpartition("-")[0]
    place = PurePath("images", official, str(line.record.get("directory", "")))
    return [str(place / f"{stem}-img{side}.png") for side in range(2)]


def _listed_images(line: Line, problems: Problems) -> list[str] | None:
    images = line.record["images"]
    if isinstance(images, list) and len(images) == 2 and all(isinstance(path, str) and path.strip() for path in images):
        return images
    problems.add("unusable entry", f"{line.where} lacks the paths of two images: write images, sentence and label")
    return None


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


def _subsets(
    annotations: Path, split: str, whole: Path, identifiers: set[str], problems: Problems
) -> Iterator[tuple[str, set[str]]]:
    for name, file in subset_files(annotations, split).items():
        members = {
            str(line.record.get("identifier"))
            for line in read_rows(file, wanted=_WANTED, known=_KEYS, problems=problems)
        }
        strangers = len(members - identifiers)
        if strangers:
            problems.note(
                f"{file}: {strangers:,} of {counted(len(members), 'identifier')} not in {whole.name}: left out"
            )
        yield name, members
