"""Where the annotations and images of each layout lie, and what is done about them when they do not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mwa_lightning.data.images import ImageReader
from mwa_lightning.data.karpathy import read_karpathy
from mwa_lightning.data.pairs import SUFFIXES, read_pairs
from mwa_lightning.data.problems import Problems
from mwa_lightning.data.records import RetrievalSplit
from mwa_lightning.errors import ConfigError, DataError

# What the built-in data set is made with; its folder is named after it.
SCENES = {"seed": 0, "train": 2000, "val": 300, "test": 500}


class Layout(NamedTuple):
    """How a kind of data set lies on disk.

    `annotations` is the usual name of the file; where it is None, the only file with one of `suffixes` is
    taken.
    """

    annotations: str | None
    images: str
    official: bool
    wanted: str
    suffixes: tuple[str, ...] = (".json",)


LAYOUTS = {
    "scenes": Layout("dataset_scenes.json", "", False, "dataset_scenes.json and its images"),
    "coco": Layout("dataset_coco.json", "", True, "train2014/, val2014/ and dataset_coco.json (the Karpathy split)"),
    "flickr30k": Layout(
        "dataset_flickr30k.json",
        "flickr30k-images",
        True,
        "flickr30k-images/ and dataset_flickr30k.json (the Karpathy split)",
    ),
    "karpathy": Layout(None, "", False, "the images and one JSON in Karpathy's form"),
    "pairs": Layout(None, "", False, "a CSV or JSONL of image, caption and optionally split", SUFFIXES),
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set on disk: its layout, its annotations, and the folder that its image paths start from."""

    layout: str
    annotations: Path
    folder: Path

    @property
    def official(self) -> bool:
        """Whether this is a published set, to be read exactly as its authors read it."""
        return LAYOUTS[self.layout].official

    def read(self, problems: Problems) -> dict[str, RetrievalSplit]:
        """The splits of the data set; what is wrong with the annotations goes to `problems`."""
        if self.layout == "pairs":
            return read_pairs(self.annotations, folder=self.folder, problems=problems)
        return read_karpathy(self.annotations, folder=self.folder, problems=problems, official=self.official)

    def image_reader(self, *, exif: bool | None) -> ImageReader:
        """How its images are read; `exif` None leaves it to the layout: honoured in one's own pictures."""
        return ImageReader(exif=not self.official if exif is None else exif, scale_deep=not self.official)


def find_source(
    *,
    layout: str,
    root: str | Path | None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
) -> Source:
    """Look up the files of a data set.

    Args:
        layout: One of LAYOUTS.
        root: Folder of the data set; for one's own sets also the file of annotations itself.
        annotations: Another name of that file; relative to `root`.
        images: Another folder of the images; relative to `root`.

    Raises:
        ConfigError: The layout is unknown, or no root is given.
        DataError: The root, the annotations or the folder of images do not exist.
    """
    form = layout_named(layout)
    if root is None and annotations is not None and Path(annotations).expanduser().is_absolute():
        root = Path(annotations).expanduser().parent
    if root is None:
        raise ConfigError(f"data.root is not set: for data={layout} give the folder that holds {form.wanted}")
    folder = Path(root).expanduser()
    if not folder.exists():
        raise DataError(f"data.root {folder} does not exist: for data={layout} it holds {form.wanted}")
    if folder.is_file():
        file, folder = folder, folder.parent
    else:
        file = _annotations(folder, layout=layout, given=annotations)
    where = folder / (form.images if images is None else Path(images).expanduser())
    if layout == "pairs" and images is None:
        where = file.parent
    if not where.is_dir():
        raise DataError(f"folder {where} of the images does not exist: put it there, or set data.images")
    return Source(layout=layout, annotations=file, folder=where)


def layout_named(name: str) -> Layout:
    """The layout of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"data.layout={name!r} is unknown: choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def scenes_root(*, domain: str) -> Path:
    """Where the built-in data set of a domain is kept; another version of the generator has another folder."""
    from mwa_lightning.data.scenes import VERSION

    return cache_folder() / f"scenes-v{VERSION}-{domain}-{'-'.join(str(value) for value in SCENES.values())}"


def prepare_scenes(root: Path, *, domain: str) -> None:
    """Make the built-in data set at `root` unless there is one; it appears whole or not at all.

    Raises:
        DataError: The folder cannot be written, or holds something else.
    """
    if (root / "dataset_scenes.json").is_file():
        return
    from mwa_lightning.data.scenes import write_scenes

    write_scenes(root, domain=domain, **SCENES)


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
        if not file.is_file():
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
