"""The picture that is probably meant where a path in annotations leads to none: said, and never taken silently."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from mwa_lightning.data.tables.text_beside import PICTURE_SUFFIXES
from mwa_lightning.system.shell_words import typed

_MOST = 200  # that a process looks for: nobody reads more, and in a large folder a look takes long
_MOST_FOLDERS = 50

_looks = itertools.count()


def picture_meant(path: str, folder: Path, data_root: Path | None) -> str | None:
    """What is there in place of a missing picture, and what to do about it, as the end of a sentence; None if nothing.

    Case, suffix, backslashes, %-codes and the form of accents may differ, or folders before the name.

    Args:
        path: The path, as it was looked for.
        folder: What the paths in the annotations start from.
        data_root: Folder of the data set, where that is another.
    """
    if next(_looks) >= _MOST:
        return None
    given = os.path.relpath(path, folder) if path.startswith(str(folder)) else path
    root = data_root or folder
    for written, why in _spellings(given):
        parts = [part for part in PurePosixPath(written).parts if part != "/"]
        for cut in range(len(parts)):
            tail = parts[cut:]
            for base in _bases(folder, root):
                found = _resolved(base, tail)
                if found is None or (base / found) == Path(path):
                    continue
                if not cut and base != folder:
                    return f"{found} is in {base}: set {typed('data.images', os.path.relpath(base, root))}"
                reason = why or _difference(tail, found)
                if cut:
                    end = len("/".join(tail))
                    same = given.replace("\\", "/").endswith("/".join(tail))
                    reason = f"cut {given[:-end] if same else written[:-end]} off the paths in the annotations"
                    reason += ", and write / in place of \\" if "\\" in given else ""
                    if base != folder:
                        reason += f" and set {typed('data.images', os.path.relpath(base, root))}"
                return f"there is {base / found}: {reason}"
    return None


def _spellings(given: str) -> Iterator[tuple[str, str]]:
    """The path as given, and with what may be wrong with it set right; with what to do in that case."""
    yield given, ""
    if "\\" in given:
        slashes = given.replace("\\", "/")
        yield slashes.split(":/", 1)[-1], "write / in place of \\ in the annotations"
    if "%" in given and (decoded := unquote(given)) != given:
        yield decoded, "decode the %-codes in the annotations"


def _difference(tail: list[str], found: Path) -> str:
    name, there = tail[-1], found.name
    if PurePosixPath(there).stem.casefold() == name.casefold() and name != there:
        return "add its suffix in the annotations"
    if unicodedata.normalize("NFC", "/".join(tail)) == unicodedata.normalize("NFC", str(found)):
        return "its accents are encoded in another way: rename it, or write it so in the annotations"
    return "write it so in the annotations"


def _bases(folder: Path, root: Path) -> list[Path]:
    """Folders that paths may start from: the one that they do start from, the data set's, those in them, the parent."""
    within = [path for base in dict.fromkeys((folder, root)) for path in _folders(base)]
    above = [folder.parent] if folder != root and folder.parent.is_relative_to(root) else []
    return list(dict.fromkeys((folder, root, *within, *above)))


@lru_cache(maxsize=64)
def _folders(base: Path) -> tuple[Path, ...]:
    try:
        found = sorted(path for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return ()
    return tuple(found[:_MOST_FOLDERS])


def _resolved(base: Path, parts: list[str]) -> Path | None:
    """The path of the file from `base` on that differs in no more than case, accents and suffix."""
    found = Path()
    for place, part in enumerate(parts):
        names = _names(base / found)
        last = place == len(parts) - 1
        name = part if part in names.get(_folded(part), ()) else next(iter(names.get(_folded(part), ())), None)
        if name is None and last:
            stems = [_folded(part), _folded(PurePosixPath(part).stem)]
            suffixes = sorted(PICTURE_SUFFIXES)
            alike = (names.get(f"{stem}{suffix}") for stem in stems for suffix in suffixes)
            name = next((each[0] for each in alike if each), None)
        if name is None:
            return None
        found /= name
    return found if (base / found).is_file() else None


@lru_cache(maxsize=256)
def _names(folder: Path) -> dict[str, list[str]]:
    """The names in a folder by what they have in common with others that differ in case or accents only."""
    names: dict[str, list[str]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.setdefault(_folded(entry.name), []).append(entry.name)
    except OSError:
        pass
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
