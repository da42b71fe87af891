"""Which tables a data set has, and the split of each: as the user says, by their usual names, or by their folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mwa_lightning.data.tables.splitting import SPLITS, split_named
from mwa_lightning.data.tables.text_beside import has_text_beside
from mwa_lightning.errors import ConfigError, DataError, shorten
from mwa_lightning.system.regular_files import open_file
from mwa_lightning.system.shell_words import typed

# In the order in which they are looked for: a folder with a CSV may have a JSON and a text for other ends.
SUFFIXES = (
    (".csv", ".tsv", ".tab", ".psv", ".jsonl", ".ndjson"),
    (".parquet", ".arrow", ".feather", ".xlsx"),
    (".txt",),
    (".json",),
)
WANTED = "a table (CSV, TSV, JSONL, JSON, Parquet, Excel)"

TARS = (
    "tar archives, as img2dataset writes them: unpack them into one folder, for example by "
    "'cat *.tar | tar -x -i -C FOLDER', and give data=pairs data.root=FOLDER, which reads a.jpg with a.txt beside it"
)
_OF_TAR = re.compile(r"\d+(_stats\.json|\.parquet)")  # what img2dataset writes beside a tar
_METADATA = "metadata"  # Hugging Face's name for the table of a folder of pictures
_HEAD = 4096


class TableFile(NamedTuple):
    """A table, the split that all its rows are of (None = its rows say, or a hash), and what its paths start with.

    Where `file` is a folder, there is no table: its pictures have texts beside them.
    """

    file: Path
    split: str | None = None
    prefix: str = ""


def split_in_name(stem: str) -> str | None:
    """The split that the name of a file tells, as `Flickr_8k.trainImages` does; None where it tells none, or two."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", re.sub(r"20\d\d", " ", stem))
    found = {split for word in words if (split := SPLITS.get(word.lower())) is not None}
    return found.pop() if len(found) == 1 else None


def tables_at(root: Path, given: Any) -> tuple[Path, tuple[TableFile, ...]]:
    """The tables of a data set in the folder `root`, or the table `root` itself; and it, or the folder of several."""
    if root.is_file():
        tables = given_tables(root.parent, root.name)
    elif given is not None:
        tables = given_tables(root, given)
    else:
        tables = found_tables(root)
    if len(tables) == 1 and not tables[0].prefix:
        return tables[0].file, tuple(tables)
    folders = {table.file.parent for table in tables}
    return (folders.pop() if len(folders) == 1 and not tables[0].prefix else root), tuple(tables)


def given_tables(root: Path, given: Any) -> list[TableFile]:
    """The tables that `data.annotations` names: one, several with the split in their names, or by split.

    Raises:
        ConfigError: Nothing tells the split of one of several.
        DataError: One does not exist.
    """
    if isinstance(given, str | Path):
        path = _there(root, given)
        if path.is_dir():
            return found_tables(path, data_root=root)
        split = split_in_name(path.stem)
        return [TableFile(path, split if split != "train" else None)]
    if isinstance(given, Mapping):
        tables = []
        for name, files in given.items():
            split = split_named(name)
            if split is None:
                raise ConfigError(
                    f"data.annotations: {name!r} is no split: write {{train: FILE, val: FILE, test: FILE}}"
                )
            several = [files] if isinstance(files, str | Path) else files
            tables += [TableFile(_there(root, file), split, _prefix(root, file)) for file in several]
        return tables
    tables = [TableFile(_there(root, file), split_in_name(Path(file).stem), _prefix(root, file)) for file in given]
    if len(tables) == 1:
        return [tables[0]._replace(prefix="")]
    for table in tables:
        if table.split is None:
            raise ConfigError(
                f"data.annotations: the name of {table.file.name} does not tell its split: write "
                "'data.annotations={train: FILE, val: FILE, test: FILE}'"
            )
    return tables


def found_tables(root: Path, *, data_root: Path | None = None) -> list[TableFile]:
    """The tables in a folder: the only one, those of the splits by name, or those in the folders of the splits.

    Args:
        root: The folder.
        data_root: Folder of the data set, where that is another.

    Raises:
        DataError: There is none, or nothing tells which of several; the line says what to type.
    """
    tables = _tables_in(root)
    if len(tables) == 1:
        split = split_in_name(tables[0].stem)
        return [TableFile(tables[0], split if split != "train" else None)]
    if tables:
        by_split = splits_by_name(tables)
        if by_split is None:
            raise DataError(
                f"{_called(root, data_root)} holds several tables ({shorten(table.name for table in tables)}): name "
                "one in data.annotations, or those of the splits: "
                "'data.annotations={train: FILE, val: FILE, test: FILE}'"
            )
        return by_split
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    in_splits = [
        TableFile(table, split, folder.name)
        for folder in folders
        if (split := split_named(folder.name)) is not None and (table := _only_table(folder)) is not None
    ]
    if in_splits:
        return in_splits
    if has_text_beside(root):
        return [TableFile(root)]
    raise DataError(_nothing(root, folders, data_root))


def require_names(tables: Sequence[TableFile]) -> None:
    """For shards, which keep the names of tables only: these have to tell the splits.

    Raises:
        DataError: They do not, or there are no tables.
    """
    if any(table.file.is_dir() for table in tables):
        raise DataError(
            f"{tables[0].file} has texts beside the images, which shards cannot keep: write a table of them"
        )
    named = splits_by_name([table.file for table in tables if not table.prefix])
    told = {table.file: table.split for table in named or ()}
    for table in tables:
        split = split_named(table.prefix) if table.prefix else told.get(table.file)
        if table.split != (None if len(tables) == 1 and split == "train" else split):
            raise DataError(
                f"{table.file} is of the split {table.split} by data.annotations only, and shards keep no more than "
                "its name: write one table with a column split, or call the tables train.csv, val.csv and test.csv"
            )


def siblings(table: Path) -> list[Path]:
    """The tables beside one that its name belongs with, itself among them; none if it stands alone."""
    alike = [file for file in _tables_in(table.parent) if file.suffix.lower() == table.suffix.lower()]
    named = [file for file in alike if split_in_name(file.stem) is not None]
    splits = {split_in_name(file.stem) for file in named}
    return named if table in named and len(splits) > 1 else []


def splits_by_name(files: Sequence[Path]) -> list[TableFile] | None:
    """The tables, if each has its split in its name, several of one split only where they differ in numbers."""
    tables = [TableFile(file, split_in_name(file.stem)) for file in files]
    names: dict[str | None, set[str]] = {}
    for table in tables:
        names.setdefault(table.split, set()).add(re.sub(r"\d+", "", table.file.name))
    if None in names or any(len(alike) > 1 for alike in names.values()):
        return None
    return tables


def split_lists(table: Path) -> list[TableFile]:
    """Lists of the pictures of each split beside a table, as Flickr8k has them; none unless one is of train."""
    if table.is_dir():
        return []
    lists = [
        TableFile(file, split)
        for file in sorted(table.parent.glob("*.txt"))
        if file != table and (split := split_in_name(file.stem)) is not None and not _parted(file)
    ]
    splits = [each.split for each in lists]
    return lists if "train" in splits and 1 < len(set(splits)) == len(splits) else []


def _tables_in(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    files = [file for file in files if not _OF_TAR.fullmatch(file.name)]
    beside = {
        file.stem for file in files if file.suffix.lower() not in {suffix for kind in SUFFIXES for suffix in kind}
    }
    for suffixes in SUFFIXES:
        found = [file for file in files if file.suffix.lower() in suffixes]
        if suffixes in (SUFFIXES[2], SUFFIXES[3]):  # may be anything; not what lies beside a picture of its name
            found = [file for file in found if file.stem not in beside and _parted(file)]
        if found:
            return found
    return []


def _only_table(folder: Path) -> Path | None:
    tables = _tables_in(folder)
    named = [table for table in tables if table.stem.lower() == _METADATA]
    return (named or tables)[0] if len(named or tables) == 1 else None


def _parted(file: Path) -> bool:
    """Whether a text has what parts columns, or begins as JSON does."""
    with open_file(file) as stream:
        head = stream.read(_HEAD)
    return any(part in head for part in (b",", b";", b"|", b"\t"))


def _there(root: Path, name: str | Path) -> Path:
    path = root / Path(name).expanduser()
    if not path.exists():
        near = [other.name for other in (path.parent.iterdir() if path.parent.is_dir() else ()) if _alike(other, path)]
        hint = f"; there is {shorten(near)}" if near else ""
        raise DataError(f"annotations {path} do not exist{hint}: data.annotations is the name of {WANTED} in data.root")
    return path


def _alike(one: Path, other: Path) -> bool:
    return one.name.lower() == other.name.lower() or one.stem.lower() == other.stem.lower()


def _prefix(root: Path, name: str | Path) -> str:
    """The folder of a table as its paths start with it, if it lies in a folder below `root`."""
    parent = PurePosixPath(Path(name).as_posix()).parent
    return "" if parent.is_absolute() or ".." in parent.parts else parent.as_posix().removeprefix(".")


def _called(root: Path, data_root: Path | None) -> str:
    return f"data.root {root}" if data_root is None else f"folder {root}"


def _nothing(root: Path, folders: Iterable[Path], data_root: Path | None) -> str:
    """What to say of a folder without a table."""
    start = data_root or root
    below = [os.path.relpath(table, start) for folder in folders for table in _tables_in(folder)]
    called = _called(root, data_root)
    if below:
        return (
            f"{called} holds no table, but there is {shorten(below)}: give {typed('data.annotations', below[0])}, and "
            "data.images=. if its paths start from data.root"
        )
    if any(root.glob("*.tar")):
        return f"{called} holds {TARS}"
    names = [folder.name for folder in folders]
    holds = "nothing of the kind"
    if names:
        holds = f"only folders ({shorten(names)}), and their names are no captions: write a table"
    return (
        f"{called} should hold {WANTED}, or images with a .txt of the same name beside each; it holds {holds}; for a "
        "table with another name or place set data.annotations"
    )
