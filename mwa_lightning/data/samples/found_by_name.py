"""Pictures of published sets that do not lie where the annotations say: each has a name of its own, and is found by it.

COCO's folders of 2014 and of 2017 hold the same photographs; the names of the former have a prefix more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePath

import numpy as np

from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.samples.records import Pictures, RetrievalSplit
from mwa_lightning.data.samples.statements import StatementSplit
from mwa_lightning.data.storage.stores import PictureStore
from mwa_lightning.errors import counted, shorten

AnySplit = RetrievalSplit | StatementSplit

_LOOKED_AT = 256  # pictures of a split; where folders are named otherwise, all of a folder are missing
_COCO_2014 = re.compile(r"COCO_(train|val|test)2014_")


def find_by_name(splits: Mapping[str, AnySplit], *, store: PictureStore, problems: Problems) -> dict[str, AnySplit]:
    """The splits with the paths at which their pictures are, if some are not where the annotations say.

    A name that stands in several folders is that in the folders which agree most with the annotations.

    Args:
        splits: Splits of a published set.
        store: What holds their pictures.
        problems: Where it is told what was found, and what was not.
    """
    if all(_are_there(split.pictures, store) for split in splits.values()):
        return dict(splits)
    wanted = {_key(path) for split in splits.values() for path in split.pictures.paths}
    there: dict[str, list[str]] = {}
    for path in store.paths():
        if (key := _key(path)) in wanted:
            there.setdefault(key, []).append(path)
    moved: dict[str, str] = {}
    found = {}
    for name, split in splits.items():
        paths = []
        for path in split.pictures.paths:
            elsewhere = PurePath(path).is_absolute() and store.size(path) is not None
            paths.append(path if elsewhere else _nearest(path, there.get(_key(path), []), problems))
            if PurePath(paths[-1]) != PurePath(path):
                moved[path] = paths[-1]
        found[name] = replace(split, pictures=_at(split.pictures, paths))
    count = sum(len(split.pictures) for split in splits.values())
    if not there:
        some = next(iter(splits.values())).pictures.paths[0]
        problems.add(
            "missing image",
            f"{store.folder} holds no image of the {count:,} in the annotations, such as {some}: unpack them there, "
            "or set data.images to the folder that holds them",
        )
    elif moved:
        was, now = next(iter(moved.items()))
        problems.took(f"{len(moved):,} of {counted(count, 'image')} found by name, such as {now} for {was}")
    return found


def _are_there(pictures: Pictures, store: PictureStore) -> bool:
    places = np.unique(np.linspace(0, len(pictures) - 1, num=min(len(pictures), _LOOKED_AT)).astype(int))
    return all(store.size(pictures[int(place)].path) is not None for place in places)


def _key(path: str) -> str:
    """What pictures are looked up by."""
    return _COCO_2014.sub("", PurePath(path).name)


def _nearest(path: str, candidates: Iterable[str], problems: Problems) -> str:
    """The candidate whose folders agree with the path for longest, from the picture upwards; else the path."""
    best: list[str] = []
    most = -1
    for candidate in sorted(candidates):
        agree = _agreement(path, candidate)
        if agree > most:
            best, most = [], agree
        if agree == most:
            best.append(candidate)
    if len(best) > 1:
        problems.add(
            "image in two folders",
            f"image {path} is there more than once ({shorten(best)}): set data.images to the folder that is meant",
        )
    return best[0] if best else path


def _agreement(path: str, other: str) -> int:
    count = 0
    for one, two in zip(reversed(PurePath(path).parts[:-1]), reversed(PurePath(other).parts[:-1]), strict=False):
        if one != two:
            break
        count += 1
    return count + (PurePath(path).name == PurePath(other).name)


def _at(pictures: Pictures, paths: list[str]) -> Pictures:
    """The same pictures at other paths."""
    return Pictures(
        folder=pictures.folder,
        paths=paths,
        names=pictures.names,
        image_ids=pictures.image_ids.tolist(),
        labels=pictures.labels,
    )
