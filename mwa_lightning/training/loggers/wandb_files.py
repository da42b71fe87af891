"""What W&B has of a run: the files that its client leaves in the run directory.

The client keeps the last 32 KiB in memory, and loses them if the run is killed. Its files are logs as LevelDB has
them, in blocks of that size after a head of seven bytes, of records of its own protocol; it reads them in Go only.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined] # made when it is imported

_HEAD, _BLOCK = 7, 2**15
_WHOLE, _FIRST, _MIDDLE = 1, 2, 3


def figures_in(folder: Path, identity: str) -> set[tuple[int, str]]:
    """Step and name of all figures and pictures that the files in W&B's folder hold of this id, over all starts."""
    found = set()
    for file in sorted(folder.glob(f"*run-*/run-{escape(identity)}.wandb")):
        for record in records(file):
            row = {_name(item): item.value_json for item in record.history.item}
            if "trainer/global_step" in row:
                step = int(json.loads(row["trainer/global_step"]))
                found |= {(step, name) for name in row}
    return found


def records(file: Path) -> Iterator[Any]:
    """The records of a file, up to where it was cut off."""
    content = file.read_bytes()
    place, record = _HEAD, b""
    while place + _HEAD <= len(content):
        left = _BLOCK - place % _BLOCK
        length, kind = struct.unpack_from("<HB", content, place + 4)
        if left < _HEAD or kind == 0:
            place += left
            continue
        record = (b"" if kind in (_WHOLE, _FIRST) else record) + content[place + _HEAD : place + _HEAD + length]
        place += _HEAD + length
        if place > len(content):
            return
        if kind not in (_FIRST, _MIDDLE):
            parsed = Record()
            try:
                parsed.ParseFromString(record)
            except DecodeError:
                return
            yield parsed


def _name(item: Any) -> str:
    """The figure's name; of a picture, whose parts are nested, the picture's."""
    return item.nested_key[0] if item.nested_key else item.key
