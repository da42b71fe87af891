"""SNLI-VE: does a photograph of Flickr30K entail, contradict or leave open a statement?

In the official files a line holds the number of its image, `sentence2` (the statement), `gold_label` and `pairID`.
ALBEF and LAVIS have a JSON list of `image`, `sentence` and `label` for each split, e-SNLI-VE a CSV.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from mwa_lightning.data.annotations.annotation_files import AnnotationNames
from mwa_lightning.data.annotations.statement_reader import StatementReader
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.samples.labels import Classes, label_text
from mwa_lightning.data.samples.statements import StatementSplit
from mwa_lightning.data.tables.rows import read_rows
from mwa_lightning.errors import counted

# In the order of ALBEF's and ModeX's heads.
CLASSES = ("contradiction", "neutral", "entailment")
NAMES = AnnotationNames(
    "snli_ve_{}.jsonl",
    "ve_{}.json",
    "esnlive_{}.csv",
    words={"train": ("train",), "val": ("dev", "val"), "test": ("test",)},
)

_WANTED = "Flickr30K_ID, sentence2 and gold_label"
_IMAGE = ("Flickr30K_ID", "Flikr30kID", "Flickr30kID", "image")
_TEXT = ("sentence2", "hypothesis", "sentence")
_LABEL = ("gold_label", "label")
_NO_AGREEMENT = "-"


def read_snli_ve(
    annotations: Path, *, folder: PurePath, problems: Problems, classes: tuple[str, ...] = CLASSES
) -> dict[str, StatementSplit]:
    """The splits whose files are there; `val` is dev.

    Lines whose annotators did not agree, labelled "-", are left out and counted.

    Args:
        annotations: Folder of the files, or one of them.
        folder: Folder of the images.
        problems: Where a damaged file, or a line that cannot be used, is reported.
        classes: The labels, in the order in which they are numbered.
    """
    reader = StatementReader(folder=folder, classes=classes, problems=problems, official=True)
    known_classes = Classes(classes)
    for split, file in NAMES.split_files(annotations).items():
        if not file.is_file():
            continue
        left_out = count = 0
        known = len(problems.found)
        problems.split = split
        for line in read_rows(file, wanted=_WANTED, known=(*_IMAGE, *_TEXT, *_LABEL), problems=problems):
            count += 1
            image, text, label = (_first(line.record, names) for names in (_IMAGE, _TEXT, _LABEL))
            if label == _NO_AGREEMENT:
                left_out += 1
            elif not isinstance(image, str | int) or isinstance(image, bool) or not str(image).strip():
                problems.bad_row("unusable entry", f"{line.where} lacks the number of its image: write {_WANTED}")
            else:
                reader.add(
                    line,
                    split=split,
                    identifier=str(line.record.get("pairID", f"{file.stem}-{line.number}")),
                    text=text,
                    label=known_classes.of(_as_text(label)),
                    images=[f"{str(image).strip().removesuffix('.jpg')}.jpg"],
                )
        if left_out:
            problems.note(f'{file}: left out {counted(left_out, "line")} with the label "{_NO_AGREEMENT}"')
        if not count and len(problems.found) == known:
            problems.add("no statements", f"{file} lists no statements: fetch it again")
    problems.split = None
    return reader.build()


def _first(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((record[name] for name in names if name in record), None)


def _as_text(label: Any) -> str:
    try:
        return label_text(label) or ""
    except ValueError:
        return str(label)
