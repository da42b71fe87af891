"""The index of a folder of shards: where each picture lies, and that it says nothing that cannot be."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mwa_lightning.data.samples.records import Strings

VERSION = 1
LARGEST = 2**31 - 1  # bytes of a picture, which is read at once

_ABOUT = "mwa_lightning_shards"
_BLOCK = 512  # of a tar file: there is the header of a picture before it
_OF_PATHS = ("members", "path_ends")
_OF_IMAGES = ("shards", "offsets", "sizes", "checksums")
_OF_SHARDS = ("shard_sizes",)


class OtherVersion(ValueError):  # noqa: N818 (what it is)
    """An index of another version than this package reads."""


class Contradiction(ValueError):  # noqa: N818 (what it is)
    """An index that says what cannot be."""


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:05}.tar"


def member_key(number: int) -> str:
    """What WebDataset calls the key of a picture: its name in the shard but for the suffix."""
    return f"{number:09}"


class Place(NamedTuple):
    """Where a picture lies: number of the shard, first byte, number of bytes, and their CRC-32."""

    shard: int
    offset: int
    size: int
    checksum: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """Where the pictures lie: m members of s shards, and the p sorted paths under which they are known.

    Args:
        layout: The layout of the data set.
        shard_bytes: The size that was asked of a shard.
        paths: Paths as the annotations have them; pictures with the same bytes share a member.
        members: The member of each path, int64 (p,).
        shards: The shard of each member, int64 (m,), ascending.
        offsets: Its first byte, int64 (m,).
        sizes: Its number of bytes, int64 (m,).
        checksums: Their CRC-32, int64 (m,).
        shard_sizes: Number of bytes of each shard, int64 (s,).
    """

    layout: str
    shard_bytes: int
    paths: Strings
    members: np.ndarray
    shards: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    checksums: np.ndarray
    shard_sizes: np.ndarray

    def member(self, path: str) -> int | None:
        """The member that a path stands for."""
        place = bisect_left(self.paths, path)
        return int(self.members[place]) if place < len(self.paths) and self.paths[place] == path else None

    def place(self, member: int) -> Place:
        """Where a member lies."""
        return Place(*(int(of[member]) for of in (self.shards, self.offsets, self.sizes, self.checksums)))

    def packed(self) -> bytes:
        """The content of the index's file; equal for equal indices."""
        about = {
            "version": VERSION,
            "layout": self.layout,
            "shard_bytes": self.shard_bytes,
        }
        names = ("members", "shards", "offsets", "sizes", "checksums", "shard_sizes")
        arrays = {name: getattr(self, name) for name in names}
        arrays["path_bytes"], arrays["path_ends"] = self.paths.packed()
        # In one entry: of several, the library would change the order from time to time.
        return save(arrays, metadata={_ABOUT: json.dumps(about, sort_keys=True)})


def unpacked(content: bytes) -> Index:
    """The index of a file's content.

    Raises:
        OtherVersion: It is of another version.
        Contradiction: It says what cannot be.
        ValueError: It is no index.
    """
    try:
        arrays = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about: dict[str, Any] = json.loads(header["__metadata__"][_ABOUT])
        version = about["version"]
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("no index of shards") from error
    if version != VERSION:
        raise OtherVersion(f"is of version {version}, and this mwa_lightning reads version {VERSION}")
    if not isinstance(about.get("layout"), str) or not isinstance(about.get("shard_bytes"), int):
        raise Contradiction("it lacks the layout or the size of shards")
    _require_lists(arrays)
    paths = Strings.unpacked(arrays.pop("path_bytes"), arrays.pop("path_ends"))
    try:
        in_order = all(one < other for one, other in pairwise(paths))
    except UnicodeDecodeError:
        in_order = False
    if not in_order:
        raise Contradiction("its paths are not in order")
    index = Index(layout=about["layout"], shard_bytes=about["shard_bytes"], paths=paths, **arrays)
    _require_sense(index)
    return index


def _require_lists(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise Contradiction unless there are lists of the right lengths, and no others."""
    wanted = {*_OF_PATHS, *_OF_IMAGES, *_OF_SHARDS, "path_bytes"}
    if arrays.keys() != wanted:
        raise Contradiction(f"its lists are {', '.join(sorted(arrays))}, not {', '.join(sorted(wanted))}")
    for name, array in arrays.items():
        if array.dtype != (np.uint8 if name == "path_bytes" else np.int64) or array.ndim != 1:
            raise Contradiction(f"{name} is no list of whole numbers")
    for names in (_OF_PATHS, _OF_IMAGES):
        if len({len(arrays[name]) for name in names}) > 1:
            raise Contradiction(f"{', '.join(names)} differ in length")
    ends = arrays["path_ends"]
    if (np.diff(ends, prepend=0) < 0).any() or len(arrays["path_bytes"]) != (ends[-1] if len(ends) else 0):
        raise Contradiction("its paths do not end where it says")


def _require_sense(index: Index) -> None:
    """Raise Contradiction unless every number can be right."""
    images, shards = len(index.sizes), len(index.shard_sizes)
    in_a_shard = (index.shards >= 0) & (index.shards < shards)
    room = index.shard_sizes[np.where(in_a_shard, index.shards, 0)] if shards else np.zeros(images, dtype=np.int64)
    for what, right in {
        "paths that stand for no image": (index.members >= 0) & (index.members < images),
        "images in no shard": in_a_shard,
        "images of an impossible size": (index.sizes >= 0) & (index.sizes <= LARGEST),
        "images outside of their shard": (index.offsets >= _BLOCK)
        & (index.offsets <= room - index.sizes.clip(0, LARGEST)),
        "images with no checksum": (index.checksums >= 0) & (index.checksums < 2**32),
        "images out of order": np.diff(index.shards, prepend=0) >= 0,
        "shards of an impossible size": index.shard_sizes >= 0,
    }.items():
        if wrong := int((~right).sum()):
            raise Contradiction(f"{what}: {wrong:,}")
