"""Where the annotations and images of each layout lie, and what is done about them when they do not."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

from mwa_lightning.data import jsonl, lines, nlvr2, pairs
from mwa_lightning.data.images import ImageReader, colour_of
from mwa_lightning.data.karpathy import read_karpathy
from mwa_lightning.data.problems import Problems
from mwa_lightning.data.records import RetrievalSplit
from mwa_lightning.data.shards import ANNOTATIONS, open_shards
from mwa_lightning.data.statements import StatementSplit
from mwa_lightning.data.storage import Storage, readable
from mwa_lightning.data.stores import PictureFolder, PictureStore
from mwa_lightning.errors import ConfigError, DataError

# Made by this package where they are missing.
BUILT_IN = ("scenes", "scenes_nlvr2")

Splits = dict[str, RetrievalSplit] | dict[str, StatementSplit]

# What the built-in data sets are made with; their folders are named after it. Statements come in groups of four.
SCENES = {"seed": 0, "train": 2000, "val": 300, "test": 500}
SCENES_NLVR2 = {"seed": 0, "train": 8000, "dev": 500, "test": 1000}


class Layout(NamedTuple):
    """How a kind of data set lies on disk.

    `annotations` is the usual name of the file, or of the folder of those of the splits; where it is None, the
    only file with one of `suffixes` is taken. `read` makes the splits of a Source.
    """

    annotations: str | None
    images: str
    official: bool
    wanted: str
    read: Callable[[Source, Problems], Splits]
    split_type: type[RetrievalSplit] | type[StatementSplit] = RetrievalSplit
    suffixes: tuple[str, ...] = (".json",)
    split_files: Callable[[Path], dict[str, Path]] | None = None
    subset_files: Callable[[Path, str], dict[str, Path]] = lambda annotations, split: {}
    images_beside: bool = False  # the paths of images start from the folder of the annotations


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set on disk: its layout, its annotations, and what holds its images.

    `classes` are those that its labels may have, where the user says.
    """

    layout: str
    annotations: Path
    store: PictureStore
    classes: tuple[str, ...] | None = None

    @property
    def folder(self) -> PurePath:
        """What the paths of its images start from."""
        return self.store.prefix

    @property
    def storage(self) -> Storage:
        """What has to stay while it is used."""
        return Storage([*self.files(), *self.store.files], self.store.folder)

    @property
    def official(self) -> bool:
        """Whether this is a published set, to be read exactly as its authors read it."""
        return LAYOUTS[self.layout].official

    def read(self, problems: Problems) -> Splits:
        """The splits of the data set; what is wrong with the annotations goes to `problems`.

        Raises:
            DataError: This is a run and something is wrong, or a file cannot be read at all.
        """
        with readable(self.annotations):
            return LAYOUTS[self.layout].read(self, problems)

    def files(self) -> list[Path]:
        """The files of annotations that are there, in the order of the splits, then those of subsets."""
        layout = LAYOUTS[self.layout]
        if layout.split_files is None:
            return [self.annotations]
        there = {split: file for split, file in layout.split_files(self.annotations).items() if file.is_file()}
        subsets = [file for split in there for file in layout.subset_files(self.annotations, split).values()]
        return [*there.values(), *subsets]

    def file_of(self, split: str) -> Path:
        """The file that says what is in a split."""
        files = LAYOUTS[self.layout].split_files
        return self.annotations if files is None else files(self.annotations).get(split, self.annotations)

    def image_reader(self, *, exif: bool | None, background: str | Sequence[int] | None = "auto") -> ImageReader:
        """How its images are read.

        Args:
            exif: Whether to turn them as the camera noted; None = in one's own pictures.
            background: The colour on which transparent ones are laid, None for none; "auto" = white in one's own.

        Raises:
            ConfigError: There is no such colour.
        """
        if background == "auto":
            background = None if self.official else "white"
        return ImageReader(
            exif=not self.official if exif is None else exif,
            scale_deep=not self.official,
            background=colour_of(background),
            store=self.store,
        )


@readable()
def find_source(
    *,
    layout: str,
    root: str | Path | None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    classes: Sequence[str | int] | None = None,
    shards: str | Path | None = None,
) -> Source:
    """Look up the files of a data set.

    Args:
        layout: One of LAYOUTS.
        root: Folder of the data set; for one's own sets also the file of annotations itself.
        annotations: Another name of that file; relative to `root`.
        images: Another folder of the images; relative to `root`.
        classes: What labels may say, in the order in which they are numbered; None = as the layout has it.
        shards: Folder of its shards, which takes the place of `root`, `annotations` and `images`.

    Raises:
        ConfigError: The layout is unknown or not that of the shards, no root is given, or a class is named twice.
        DataError: The root, the annotations, the folder of images or the shards do not exist or cannot be
            read, or the shards are damaged.
    """
    form = layout_named(layout)
    if shards is not None:
        return _source_in_shards(Path(shards).expanduser(), layout=layout, classes=classes)
    if root is None and annotations is not None and Path(annotations).expanduser().is_absolute():
        root = Path(annotations).expanduser().parent
    if root is None:
        raise ConfigError(f"data.root is not set: for data={layout} give the folder that holds {form.wanted}")
    folder = Path(root).expanduser()
    if not folder.exists():
        raise DataError(f"data.root {folder} does not exist: for data={layout} it holds {form.wanted}")
    if folder.is_file() and form.split_files is not None:
        raise DataError(f"data.root {folder} is a file: for data={layout} give the folder that holds {form.wanted}")
    if folder.is_file():
        file, folder = folder, folder.parent
    else:
        file = _annotations(folder, layout=layout, given=annotations)
    where = folder / (form.images if images is None else Path(images).expanduser())
    if form.images_beside and images is None:
        where = file.parent
    if not where.is_dir():
        raise DataError(f"folder {where} of the images does not exist: put it there, or set data.images")
    return Source(layout=layout, annotations=file, store=PictureFolder(where, folder), classes=class_names(classes))


def _source_in_shards(folder: Path, *, layout: str, classes: Sequence[str | int] | None) -> Source:
    store = open_shards(folder)
    if store.index.layout != layout:
        raise ConfigError(
            f"data.shards={folder}: made of data={store.index.layout}; choose that in place of data={layout}"
        )
    annotations = folder / (ANNOTATIONS if LAYOUTS[layout].split_files is not None else store.annotations[0])
    source = Source(layout=layout, annotations=annotations, store=store, classes=class_names(classes))
    store.require_sums(file.relative_to(folder).as_posix() for file in source.files())
    return source


def class_names(classes: Sequence[str | int] | None) -> tuple[str, ...] | None:
    """The names of classes as labels have them.

    Raises:
        ConfigError: There are fewer than two, or one comes twice.
    """
    if classes is None:
        return None
    names = tuple(str(name) for name in classes)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"data.classes=[{','.join(names)}]: name at least two classes, each once")
    return names


def layout_named(name: str) -> Layout:
    """The layout of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"data.layout={name!r} is unknown: choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def scenes_root(*, domain: str, layout: str = "scenes") -> Path:
    """Where a built-in data set of a domain is kept; another version of the generator has another folder."""
    from mwa_lightning.data.scenes import VERSION

    sizes = "-".join(str(value) for value in (SCENES if layout == "scenes" else SCENES_NLVR2).values())
    return cache_folder() / f"{layout.replace('_', '-')}-v{VERSION}-{domain}-{sizes}"


def prepare_scenes(root: Path, *, domain: str, layout: str = "scenes") -> None:
    """Make a built-in data set at `root` unless there is one; it appears whole or not at all.

    Raises:
        DataError: The folder cannot be written, or holds something else.
    """
    annotations = LAYOUTS[layout].annotations
    assert annotations is not None
    if (root / annotations).exists():
        return
    from mwa_lightning.data.scenes import write_scenes, write_scenes_nlvr2

    if layout == "scenes":
        write_scenes(root, domain=domain, **SCENES)
    else:
        write_scenes_nlvr2(root, domain=domain, **SCENES_NLVR2)


def cache_folder() -> Path:
    """The user's folder for what can be made again: MWA_CACHE, or mwa_lightning in the one of the system."""
    if own := os.environ.get("MWA_CACHE"):
        return Path(own).expanduser()
    system = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(system).expanduser() / "mwa_lightning"


def _annotations(folder: Path, *, layout: str, given: str | Path | None) -> Path:
    form = LAYOUTS[layout]
    name = form.annotations if given is None else given
    if name is not None:
        file = folder / Path(name).expanduser()
        if form.split_files is not None:
            there = any(split_file.is_file() for split_file in form.split_files(file).values())
        else:
            there = file.is_file()
        if not there:
            raise DataError(
                f"annotations {file} do not exist: data.root holds {form.wanted}; for another name set data.annotations"
            )
        return file
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in form.suffixes)
    if len(found) != 1:
        listed = ", ".join(file.name for file in found[:5]) or "none"
        raise DataError(
            f"data.root {folder} should hold {form.wanted}, but of {', '.join(form.suffixes)} there is: "
            f"{listed}: set data.annotations"
        )
    return found[0]


def _read_karpathy(source: Source, problems: Problems) -> Splits:
    return read_karpathy(source.annotations, folder=source.folder, problems=problems, official=source.official)


def _read_pairs(source: Source, problems: Problems) -> Splits:
    return pairs.read_pairs(source.annotations, folder=source.folder, problems=problems)


def _read_nlvr2(source: Source, problems: Problems) -> Splits:
    classes = source.classes or nlvr2.CLASSES
    return nlvr2.read_nlvr2(source.annotations, store=source.store, problems=problems, classes=classes)


def _read_snli_ve(source: Source, problems: Problems) -> Splits:
    classes = source.classes or jsonl.ENTAILMENT_CLASSES
    return jsonl.read_snli_ve(source.annotations, folder=source.folder, problems=problems, classes=classes)


def _read_jsonl(source: Source, problems: Problems) -> Splits:
    return jsonl.read_jsonl(source.annotations, folder=source.folder, problems=problems, classes=source.classes)


LAYOUTS = {
    "scenes": Layout("dataset_scenes.json", "", False, "dataset_scenes.json and its images", _read_karpathy),
    "coco": Layout(
        "dataset_coco.json",
        "",
        True,
        "train2014/, val2014/ and dataset_coco.json (the Karpathy split)",
        _read_karpathy,
    ),
    "flickr30k": Layout(
        "dataset_flickr30k.json",
        "flickr30k-images",
        True,
        "flickr30k-images/ and dataset_flickr30k.json (the Karpathy split)",
        _read_karpathy,
    ),
    "karpathy": Layout(None, "", False, "the images and one JSON in Karpathy's form", _read_karpathy),
    "pairs": Layout(
        None,
        "",
        False,
        "a CSV or JSONL of image, caption and optionally split",
        _read_pairs,
        suffixes=pairs.SUFFIXES,
        images_beside=True,
    ),
    "nlvr2": Layout(
        "nlvr/nlvr2/data",
        "",
        True,
        "images/train/, dev/, test1/ and nlvr/nlvr2/data/{train,dev,test1}.json",
        _read_nlvr2,
        StatementSplit,
        split_files=nlvr2.split_files,
        subset_files=nlvr2.subset_files,
    ),
    "scenes_nlvr2": Layout(
        "nlvr/nlvr2/data",
        "",
        False,
        "images/ and nlvr/nlvr2/data/{train,dev,test1}.json",
        _read_nlvr2,
        StatementSplit,
        split_files=nlvr2.split_files,
        subset_files=nlvr2.subset_files,
    ),
    "snli_ve": Layout(
        "",
        "flickr30k-images",
        True,
        "flickr30k-images/ and snli_ve_{train,dev,test}.jsonl",
        _read_snli_ve,
        StatementSplit,
        split_files=jsonl.snli_ve_files,
    ),
    "jsonl": Layout(
        None,
        "",
        False,
        "a JSONL of image or images, text, label and optionally split",
        _read_jsonl,
        StatementSplit,
        suffixes=lines.SUFFIXES,
        images_beside=True,
    ),
}
