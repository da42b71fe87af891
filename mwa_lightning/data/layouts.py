"""The kinds of data sets: how each lies on disk, and what reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mwa_lightning.data.annotations import nlvr2, snli_ve
from mwa_lightning.data.annotations.annotation_files import AnnotationNames, names_beside
from mwa_lightning.data.annotations.caption_json import read_caption_json
from mwa_lightning.data.annotations.pairs import read_pairs
from mwa_lightning.data.annotations.statement_tables import read_statements
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.samples.records import RetrievalSplit
from mwa_lightning.data.samples.statements import StatementSplit
from mwa_lightning.data.tables.table_files import WANTED
from mwa_lightning.errors import ConfigError

if TYPE_CHECKING:
    from mwa_lightning.data.sources import Source

Splits = dict[str, RetrievalSplit] | dict[str, StatementSplit]


class Layout(NamedTuple):
    """How a kind of data set lies on disk.

    `annotations` is the usual name of the file, or of the folder of those of the splits; `names` are those by
    which they are found where that is not there. Where both are None, the only JSON is taken. `read` makes the
    splits of a Source.
    """

    annotations: str | None
    images: str
    official: bool
    wanted: str
    read: Callable[[Source, Problems], Splits]
    split_type: type[RetrievalSplit] | type[StatementSplit] = RetrievalSplit
    names: AnnotationNames | None = None
    subset_files: Callable[[Path, str], dict[str, Path]] = lambda annotations, split: {}
    images_beside: bool = False  # the paths of images start from the folder of the annotations
    tables: bool = False  # its annotations are one table of any kind, or several
    own: bool = False  # its annotations are one JSON of any name, or one for each split

    def split_files(self, annotations: Path) -> dict[str, Path]:
        """The file of each split, whether it is there or not; empty where one file holds all of them."""
        names = names_beside(annotations) if self.own else self.names
        return {} if names is None else names.split_files(annotations)


def layout_named(name: str) -> Layout:
    """The layout of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"data.layout={name!r} is unknown: choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def _read_captions(source: Source, problems: Problems) -> Splits:
    if not source.official and source.annotations.name.startswith("captions_"):
        problems.note(
            f"{source.annotations} is named as COCO's own captions are: data=coco finds their images in whichever "
            "folder they lie"
        )
    return read_caption_json(
        source.split_files() or source.annotations,
        folder=source.folder,
        problems=problems,
        official=source.official,
        val_share=source.val_share,
    )


def _read_pairs(source: Source, problems: Problems) -> Splits:
    return read_pairs(
        source.tables, store=source.store, problems=problems, columns=source.columns, val_share=source.val_share
    )


def _read_nlvr2(source: Source, problems: Problems) -> Splits:
    classes = source.classes or nlvr2.CLASSES
    return nlvr2.read_nlvr2(source.annotations, folder=source.folder, problems=problems, classes=classes)


def _read_snli_ve(source: Source, problems: Problems) -> Splits:
    classes = source.classes or snli_ve.CLASSES
    return snli_ve.read_snli_ve(source.annotations, folder=source.folder, problems=problems, classes=classes)


def _read_statements(source: Source, problems: Problems) -> Splits:
    return read_statements(
        source.tables,
        store=source.store,
        problems=problems,
        classes=source.classes,
        columns=source.columns,
        val_share=source.val_share,
    )


LAYOUTS = {
    "scenes": Layout("dataset_scenes.json", "", False, "dataset_scenes.json and its images", _read_captions),
    "coco": Layout(
        "dataset_coco.json",
        "",
        True,
        "train2014/, val2014/ and dataset_coco.json (the Karpathy split)",
        _read_captions,
        names=AnnotationNames(
            "dataset_coco.json",
            "coco_karpathy_{}.json",
            "coco_{}.json",
            "captions_{}2017.json",
            "captions_{}2014.json",
        ),
    ),
    "flickr30k": Layout(
        "dataset_flickr30k.json",
        "flickr30k-images",
        True,
        "flickr30k-images/ and dataset_flickr30k.json (the Karpathy split)",
        _read_captions,
        names=AnnotationNames("dataset_flickr30k.json", "flickr30k_{}.json", "{}.json"),
    ),
    "karpathy": Layout(
        None, "", False, "the images and a JSON in Karpathy's form, or in COCO's or BLIP's", _read_captions, own=True
    ),
    "pairs": Layout(
        None,
        "",
        False,
        f"{WANTED} of image, caption and optionally split",
        _read_pairs,
        images_beside=True,
        tables=True,
    ),
    "nlvr2": Layout(
        "nlvr/nlvr2/data",
        "",
        True,
        "images/train/, dev/, test1/ and nlvr/nlvr2/data/{train,dev,test1}.json",
        _read_nlvr2,
        StatementSplit,
        names=nlvr2.NAMES,
        subset_files=nlvr2.subset_files,
    ),
    "scenes_nlvr2": Layout(
        "nlvr/nlvr2/data",
        "",
        False,
        "images/ and nlvr/nlvr2/data/{train,dev,test1}.json",
        _read_nlvr2,
        StatementSplit,
        names=nlvr2.NAMES,
        subset_files=nlvr2.subset_files,
    ),
    "snli_ve": Layout(
        "",
        "flickr30k-images",
        True,
        "flickr30k-images/ and snli_ve_{train,dev,test}.jsonl",
        _read_snli_ve,
        StatementSplit,
        names=snli_ve.NAMES,
    ),
    "statements": Layout(
        None,
        "",
        False,
        f"{WANTED} of image or images, text, label and optionally split",
        _read_statements,
        StatementSplit,
        images_beside=True,
        tables=True,
    ),
}
LAYOUTS["jsonl"] = LAYOUTS["statements"]  # what it was called when only JSONL was read
