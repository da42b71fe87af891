"""Files of W&B's client: frames within and across blocks, pictures, and files that were cut off."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

from mwa_lightning.training.loggers.wandb_files import figures_in, records


def row(step: int, **figures: float) -> bytes:
    """A row of the history, with a picture, as the client writes it."""
    record = Record()
    for name, value in {"trainer/global_step": step, **figures}.items():
        record.history.item.add(nested_key=[name], value_json=json.dumps(value))
    record.history.item.add(nested_key=["picture", "count"], value_json="2")
    return record.SerializeToString()


def framed(*contents: bytes) -> bytes:
    """A log as LevelDB has it; checksums are left 0."""
    log = b":W&B\x12\x34\x00"
    for content in contents:
        first = True
        while first or content:
            room = 2**15 - len(log) % 2**15
            if room < 7:
                log += b"\x00" * room
                continue
            part, content = content[: room - 7], content[room - 7 :]
            kind = {(True, False): 1, (True, True): 2, (False, True): 3, (False, False): 4}[first, bool(content)]
            log += struct.pack("<IHB", 0, len(part), kind) + part
            first = False
    return log


def test_figures_in__all_starts_and_blocks(tmp_path: Path) -> None:
    long = {f"figure_{number}": 1.0 for number in range(4000)}  # more than two blocks
    assert len(row(1, **long)) > 2 * 2**15
    for start, content in enumerate([framed(row(0, a=1.0), row(1, **long), row(2, b=2.0)), framed(row(3, a=3.0))]):
        folder = tmp_path / f"offline-run-{start}-x"
        folder.mkdir()
        (folder / "run-x.wandb").write_bytes(content)
    found = figures_in(tmp_path, "x")
    assert {(0, "a"), (1, "figure_3999"), (2, "b"), (3, "a"), (2, "picture")} <= found
    assert len(found) == 4000 + 3 + 4 * 2
    assert figures_in(tmp_path / "none", "x") == set()
    assert figures_in(tmp_path, "y") == set()  # W&B has none of the run of another id


def test_records__up_to_where_the_file_was_cut(tmp_path: Path) -> None:
    content, file = framed(row(0, a=1.0), row(1, a=2.0)), tmp_path / "run-x.wandb"
    for size in range(7, len(content) + 1):
        file.write_bytes(content[:size])
        whole = 2 if size == len(content) else int(size >= 7 + 7 + len(row(0, a=1.0)))
        assert len(list(records(file))) == whole
