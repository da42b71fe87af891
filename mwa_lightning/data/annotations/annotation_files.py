"""Which files hold the annotations of a published data set: who made them gave them other names.

A name with `{}` in it is that of a file for each split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mwa_lightning.errors import DataError, shorten
from mwa_lightning.system.shell_words import typed

# What a split is called in the names of files; the first is what a missing file is called in messages.
_WORDS = {
    "train": ("train",),
    "val": ("val", "dev", "valid", "validation"),
    "test": ("test", "test1"),
}


class AnnotationNames:
    """The names that the annotations of a data set go by, those that count first at the front.

    Args:
        names: File names; those of one pattern belong together, and the one with most files counts.
        words: What the splits are called in the pattern, where other names than the usual come first.
    """

    def __init__(self, *names: str, words: dict[str, tuple[str, ...]] | None = None) -> None:
        self.whole = [name for name in names if "{}" not in name]
        self.patterns = [name for name in names if "{}" in name]
        self._words = words or _WORDS

    def split_files(self, annotations: Path) -> dict[str, Path]:
        """The file of each split, whether it is there or not; empty for a file that holds all of them.

        Args:
            annotations: A folder, or one of the files, which stands for those that belong to it.
        """
        if not annotations.is_dir() and annotations.suffix:
            pattern = next((pattern for pattern in self.patterns if self._split_of(annotations.name, pattern)), None)
            return {} if pattern is None else self._files(annotations.parent, pattern)
        every = [self._files(annotations, pattern) for pattern in self.patterns]
        return max(every, key=_there) if every else {}

    def locate(self, root: Path) -> Path | None:
        """The file of all splits, or else the folder of those of each, in or near the root of a data set.

        Raises:
            DataError: There are two sets of files which divide the images in other ways.
        """
        folders = list(_folders(root))
        for folder in folders:
            for name in self.whole:
                if (folder / name).is_file():
                    return folder / name
        for folder in folders:
            if there := [files for pattern in self.patterns if _there(files := self._files(folder, pattern))]:
                best = [files for files in there if _there(files) == max(map(_there, there))]
                names = [next(file.name for file in files.values() if file.is_file()) for files in best]
                if len(names) > 1 and all(name.startswith("captions_") for name in names):  # of 2014 and 2017
                    raise DataError(
                        f"{folder} holds {' and '.join(names)}, which divide the images into different splits: choose "
                        f"one, such as {typed('data.annotations', (folder / names[0]).relative_to(root))}"
                    )
                return folder
        return None

    def missing(self, folder: Path) -> str:
        """What a folder lacks, and what JSON it and those in it do hold, for messages."""
        usual = [*self.whole, *(pattern.format("{train,val,test}") for pattern in self.patterns)]
        there = [file for place in _folders(folder) for file in place.iterdir() if file.suffix in (".json", ".jsonl")]
        names = shorten(sorted(str(file.relative_to(folder)) for file in there))
        return f"none of {', '.join(usual)}" + (f", but {names}" if names else "")

    def _files(self, folder: Path, pattern: str) -> dict[str, Path]:
        files = {}
        for split, words in self._words.items():
            names = [folder / pattern.format(word) for word in words]
            files[split] = next((file for file in names if file.is_file()), names[0])
        return files

    def _split_of(self, name: str, pattern: str) -> str | None:
        names = {pattern.format(word): split for split, words in self._words.items() for word in words}
        return names.get(name)


def names_beside(file: Path) -> AnnotationNames | None:
    """The names of the files that a file with a split in its name belongs with; None if it stands for all splits.

    Of a file that stands alone, `train` says nothing.
    """
    for split, words in _WORDS.items():
        for word in words:
            if match := re.search(rf"(?<![a-z]){word}(?![a-z])", file.name):
                names = AnnotationNames(f"{file.name[: match.start()]}{{}}{file.name[match.end() :]}")
                alone = _there(names.split_files(file)) < 2
                return None if alone and split == "train" else names
    return None


def _folders(root: Path) -> Iterator[Path]:
    """Where annotations usually lie."""
    yield root
    below = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    below.sort(key=lambda folder: folder.name != "annotations")
    yield from below
    for folder in below:
        if (folder / "annotations").is_dir():
            yield folder / "annotations"


def _there(files: dict[str, Path]) -> int:
    return sum(file.is_file() for file in files.values())
