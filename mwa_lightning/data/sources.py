"""Where the annotations and images of each layout lie, and what is done about them when they do not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, cast

from mwa_lightning.data.built_in import BUILT_IN
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.images.reader import ImageReader, colour_of
from mwa_lightning.data.layouts import LAYOUTS, Layout, Splits, layout_named
from mwa_lightning.data.samples.found_by_name import find_by_name
from mwa_lightning.data.samples.missing import leave_out_missing
from mwa_lightning.data.samples.statements import class_names
from mwa_lightning.data.shards.store import ANNOTATIONS, open_shards
from mwa_lightning.data.storage.availability import Storage, readable
from mwa_lightning.data.storage.stores import PictureFolder, PictureStore
from mwa_lightning.data.tables.table_files import TableFile, split_lists, tables_at
from mwa_lightning.errors import ConfigError, DataError, counted, shorten


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set on disk: its layout, its annotations, and what holds its images.

    `annotations` is the folder of several tables. `classes` are those that its labels may have, and `columns` what the
    columns of its tables hold, where the user says; `val_share` of train becomes val, where there is none.
    """

    layout: str
    annotations: Path
    store: PictureStore
    classes: tuple[str, ...] | None = None
    tables: tuple[TableFile, ...] = ()
    columns: Mapping[str, Any] | None = None
    val_share: float | None = None

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
            splits = LAYOUTS[self.layout].read(self, problems)
            if self.official:
                splits = cast(Splits, find_by_name(splits, store=self.store, problems=problems))
        splits = cast(Splits, leave_out_missing(splits, store=self.store, problems=problems))
        if problems.skipped:
            rows = f"left out {counted(len(problems.skipped), 'row')} of no use"
            problems.note(f"{self.annotations}: {rows} (data.skip_bad_rows), the first: {problems.skipped[0]}")
        return splits

    def problems(self, *, skip_rows: int = 0, skip_in_evaluation: bool = False, collect: bool = False) -> Problems:
        """Where to report what is wrong with the annotations (see `Problems`)."""
        rows = None if self.layout in BUILT_IN else skip_rows
        return Problems(collect=collect, skip_rows=rows, skip_in_evaluation=skip_in_evaluation)

    def split_files(self) -> dict[str, Path]:
        """The files of the splits that are there; empty where one file holds all of them."""
        files = LAYOUTS[self.layout].split_files(self.annotations)
        return {split: file for split, file in files.items() if file.is_file()}

    def files(self) -> list[Path]:
        """The files of annotations that are there, in the order of the splits, then those of subsets."""
        if self.tables:
            lists = [each.file for table in self.tables for each in split_lists(table.file)]
            return list(dict.fromkeys([table.file for table in self.tables if table.file.is_file()] + lists))
        there = self.split_files()
        subsets = [
            file for split in there for file in LAYOUTS[self.layout].subset_files(self.annotations, split).values()
        ]
        return [*there.values(), *subsets] or [self.annotations]

    def file_of(self, split: str) -> Path:
        """The file that says what is in a split."""
        for table in self.tables:
            if table.split == split:
                return table.file
        return LAYOUTS[self.layout].split_files(self.annotations).get(split, self.annotations)

    def without(self, split: str, there: Collection[str]) -> str:
        """What to do about a split that is not there, where those that are `there` are."""
        if split == "train":
            return "mwa-train needs one; mwa-eval does not"
        if split == "test":
            other = next((name for name in ("val", "train") if name in there), None)
            return "add one to the annotations" if other is None else f"split={other} evaluates another"
        if "train" in there and (self.tables or LAYOUTS[self.layout].own):
            return "mwa-train needs one: data.val_share=0.05 makes one of 5 % of train, by a hash of the images"
        return "mwa-train needs one: add it to the annotations"

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
    annotations: str | Path | Sequence[str] | Mapping[str, Any] | None = None,
    images: str | Path | None = None,
    classes: Sequence[str | int] | None = None,
    shards: str | Path | None = None,
    columns: Mapping[str, Any] | None = None,
    val_share: float | None = None,
) -> Source:
    """Look up the files of a data set.

    Args:
        layout: One of LAYOUTS.
        root: Folder of the data set; for one's own sets also the file of annotations itself.
        annotations: Another name of that file; relative to `root`. Of tables also several, with their splits in their
            names, or by split.
        images: Another folder of the images; relative to `root`.
        classes: What labels may say, in the order in which they are numbered; None = as the layout has it.
        shards: Folder of its shards, which takes the place of `root`, `annotations` and `images`.
        columns: Which columns of a table hold image, caption and split; None = found by their names.
        val_share: How much of train becomes val, where there is none.

    Raises:
        ConfigError: The layout is unknown or not that of the shards, no root is given, or a class is named twice.
        DataError: The root, the annotations, the folder of images or the shards do not exist or cannot be
            read, or the shards are damaged.
    """
    form = layout_named(layout)
    if shards is not None:
        source = _source_in_shards(Path(shards).expanduser(), layout=layout, classes=classes)
        return replace(source, columns=columns, val_share=val_share)
    if not form.tables and not isinstance(annotations, str | Path | None):
        raise ConfigError(
            f"data.annotations names several files, and data={layout} takes one name: give a file or a folder"
        )
    if root is None and isinstance(annotations, str | Path) and Path(annotations).expanduser().is_absolute():
        root = Path(annotations).expanduser().parent
    if root is None:
        raise ConfigError(f"data.root is not set: for data={layout} give the folder that holds {form.wanted}")
    folder = Path(root).expanduser()
    if not folder.exists():
        raise DataError(f"data.root {folder} does not exist: for data={layout} it holds {form.wanted}")
    if folder.is_file() and form.split_files(folder.parent) and not form.split_files(folder):
        raise DataError(f"data.root {folder} is a file: for data={layout} give the folder that holds {form.wanted}")
    tables: tuple[TableFile, ...] = ()
    if form.tables:
        file, tables = tables_at(folder, annotations)
        folder = folder if folder.is_dir() else folder.parent
        if images is not None:
            tables = tuple(table._replace(prefix="") for table in tables)
    elif folder.is_file():
        file, folder = folder, folder.parent
    else:
        assert isinstance(annotations, str | Path | None)
        file = _annotations(folder, layout=layout, given=annotations)
    where = folder / (form.images if images is None else Path(images).expanduser())
    if images is None and form.official and not where.is_dir():
        where = folder  # its pictures are found by their names
    if form.images_beside and images is None:
        where = file if file.is_dir() else file.parent
    if not where.is_dir():
        raise DataError(f"the folder of the images, {where}, does not exist: put it there, or set data.images")
    return Source(
        layout=layout,
        annotations=file,
        store=PictureFolder(where, folder),
        classes=class_names(classes),
        tables=tables,
        columns=columns,
        val_share=val_share,
    )


def source_of(data: Mapping[str, Any]) -> Source:
    """The data set that a configuration describes. Raises as `find_source` does."""
    keys = ("root", "annotations", "images", "classes", "shards", "columns", "val_share")
    return find_source(layout=data["layout"], **{key: data.get(key) for key in keys})


def _source_in_shards(folder: Path, *, layout: str, classes: Sequence[str | int] | None) -> Source:
    store = open_shards(folder)
    if LAYOUTS.get(store.index.layout) is not LAYOUTS[layout]:
        raise ConfigError(
            f"data.shards={folder} is made of data={store.index.layout}: take that in place of data={layout}"
        )
    form = LAYOUTS[layout]
    files = [folder / name for name in store.annotations]
    several = any(map(form.split_files, files)) or (form.tables and len(files) > 1)
    annotations = folder / ANNOTATIONS if several and (form.tables or form.names) else files[0]
    tables = tables_at(annotations, None)[1] if form.tables else ()
    source = Source(layout=layout, annotations=annotations, store=store, classes=class_names(classes), tables=tables)
    store.require_sums(file.relative_to(folder).as_posix() for file in source.files())
    return source


def _annotations(folder: Path, *, layout: str, given: str | Path | None) -> Path:
    form = LAYOUTS[layout]
    usual = given is None or str(given) == form.annotations
    name = form.annotations if given is None else given
    if name is not None:
        file = folder / Path(name).expanduser()
        if _holds(file, form):
            return file
        if usual and form.names is not None and (found_file := form.names.locate(folder)) is not None:
            return found_file
        where = folder if usual else file
        if form.names is not None and where.is_dir():
            raise DataError(
                f"folder {where} holds {form.names.missing(where)}: for data={layout} it holds {form.wanted}; for "
                "another folder or file set data.annotations"
            )
        raise DataError(
            f"annotations {file} do not exist: data.root holds {form.wanted}; for another name set data.annotations"
        )
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".json")
    if found and {file for file in form.split_files(found[0]).values() if file.is_file()} == set(found):
        return found[0]  # and those that belong to it
    if len(found) != 1:
        there = f"several .json ({shorten(file.name for file in found)})" if found else "no .json"
        raise DataError(
            f"data.root {folder} should hold {form.wanted}, but it has {there}: set data.annotations to the file that "
            "holds them"
        )
    return found[0]


def _holds(annotations: Path, form: Layout) -> bool:
    """Whether these are annotations, or a folder of some."""
    if annotations.is_dir():
        return any(file.is_file() for file in form.split_files(annotations).values())
    return annotations.is_file()
