"""How fast are pictures read from files, from our shards, and from LitData's chunks?

    python scripts/benchmark/shards.py --pictures 4000 --kilobytes 60

Writes pictures (random pixels: nothing is decoded) in every form, and reads all of them in order and in random order,
the forms in turn, so that a drift of the machine's speed falls on all alike; medians and ratios to files are printed.
Before each reading the pages of the form are dropped from the system's cache (`--warm`: kept). On a busy machine the
time of the processor says more than the clock's. `litdata` and `webdataset` are measured where they are installed; the
package needs neither. WebDataset's reader has no random access.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.shard_writing import write_shards
from mwa_lightning.data.sources import find_source

# Reads the pictures of these places; returns the sum of their checksums.
Read = Callable[[Iterable[int]], int]
ORDERS = ("in order", "random")


class Row(TypedDict):
    """The figures of one form."""

    form: str
    files: int
    bytes: int
    pictures_a_second: dict[str, float]
    ratio: dict[str, float]
    processor_us: dict[str, float]  # a picture


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--kilobytes", type=int, default=60, help="mean size of a picture")
    parser.add_argument("--shard-mb", type=int, default=64, help="size of a shard, and of a chunk of LitData")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", action="store_true", help="read from the system's cache")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder otherwise")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    return parser.parse_args(argv)


def write_files(root: Path, *, pictures: int, kilobytes: int) -> None:
    """A data set in Karpathy's form, of pictures from half to one and a half times the mean size."""
    root.mkdir()
    generator = np.random.default_rng(0)
    entries = []
    for number in range(pictures):
        name = f"{number:06}.jpg"
        width = int(kilobytes * generator.uniform(0.5, 1.5))  # of a row of 3 bytes a pixel
        (root / name).write_bytes(f"P6 {width} 333 255\n".encode() + generator.bytes(width * 333 * 3))
        entries.append({"filename": name, "split": "train", "sentences": [{"raw": f"picture {number}"}]})
    (root / "dataset.json").write_text(json.dumps({"images": entries}))


def from_source(*, root: Path | None = None, shards: Path | None = None) -> Read:
    """Reading as a run does, but for decoding."""
    source = find_source(layout="karpathy", root=root, shards=shards)
    pictures = source.read(Problems())["train"].pictures

    def read(places: Iterable[int]) -> int:
        total = 0
        for place in places:
            with source.store.open(pictures[place].path) as file:
                total += zlib.crc32(file.read())
        return total

    return read


def from_litdata(files: Path, folder: Path, *, shard_mb: int) -> Read:
    """Reading from LitData's chunks."""
    import litdata

    names = sorted(str(path) for path in files.glob("*.jpg"))
    litdata.optimize(
        fn=lambda name: Path(name).read_bytes(),
        inputs=names,
        output_dir=str(folder),
        num_workers=1,
        chunk_bytes=f"{shard_mb}MB",
        start_method="fork",
    )

    def read(places: Iterable[int]) -> int:
        dataset = litdata.StreamingDataset(str(folder), shuffle=False)
        return sum(zlib.crc32(dataset[place]) for place in places)

    return read


def from_webdataset(shards: Path) -> Read:
    """Reading our shards by the library that their form is named after, in order only."""
    import webdataset

    def read(places: Iterable[int]) -> int:
        names = sorted(str(path) for path in shards.glob("*.tar"))
        return sum(zlib.crc32(sample["jpg"]) for sample in webdataset.WebDataset(names, shardshuffle=False))

    return read


def drop_from_cache(folder: Path) -> None:
    """Have the next reading come from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Write all forms, read them in turn."""
    files, shards, chunks = folder / "files", folder / "shards", folder / "litdata"
    write_files(files, pictures=arguments.pictures, kilobytes=arguments.kilobytes)
    write_shards(find_source(layout="karpathy", root=files), shards, shard_bytes=arguments.shard_mb * 1_000_000)
    forms: dict[str, tuple[Path, Read]] = {
        "files": (files, from_source(root=files)),
        "shards": (shards, from_source(shards=shards)),
    }
    if importlib.util.find_spec("litdata"):
        forms["litdata"] = (chunks, from_litdata(files, chunks, shard_mb=arguments.shard_mb))
    if importlib.util.find_spec("webdataset"):
        forms["webdataset's reader"] = (shards, from_webdataset(shards))
    orders = {
        "in order": list(range(arguments.pictures)),
        "random": np.random.default_rng(1).permutation(arguments.pictures).tolist(),
    }
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    sums: set[int] = set()
    for _ in range(arguments.rounds):
        for order, places in orders.items():
            for form, (where, read) in forms.items():
                if form == "webdataset's reader" and order == "random":
                    continue
                if not arguments.warm:
                    drop_from_cache(where)
                start, used = time.perf_counter(), time.process_time()
                sums.add(read(places))
                spent = time.perf_counter() - start, time.process_time() - used
                times.setdefault((form, order), []).append(spent)
    assert len(sums) == 1, "the forms gave different bytes"
    return [row(form, where, times, arguments.pictures) for form, (where, _) in forms.items()]


def row(form: str, where: Path, times: dict[tuple[str, str], list[tuple[float, float]]], pictures: int) -> Row:
    """The figures of a form from the seconds of its readings, by the clock and of the processor."""
    there = [path.stat().st_size for path in where.rglob("*") if path.is_file()]
    orders = [order for order in ORDERS if (form, order) in times]
    seconds = {order: statistics.median(clock for clock, _ in times[form, order]) for order in orders}
    files = {order: statistics.median(clock for clock, _ in times["files", order]) for order in orders}
    used = {order: statistics.median(used for _, used in times[form, order]) for order in orders}
    return Row(
        form=form,
        files=len(there),
        bytes=sum(there),
        pictures_a_second={order: pictures / value for order, value in seconds.items()},
        ratio={order: files[order] / value for order, value in seconds.items()},
        processor_us={order: 1e6 * value / pictures for order, value in used.items()},
    )


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    arguments = parse(argv)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = measure(arguments, Path(folder))
    heading = "".join(f" {f'{order}: pictures/s':>22} {'ratio':>6} {'CPU µs':>7}" for order in ORDERS)
    print(f"{'':20} {'files':>7} {'bytes':>14}{heading}")
    for line in rows:
        figures = "".join(
            f" {speed:>22,.0f} {line['ratio'][order]:>6.2f} {line['processor_us'][order]:>7.0f}"
            for order, speed in line["pictures_a_second"].items()
        )
        print(f"{line['form']:20} {line['files']:>7,} {line['bytes']:>14,}{figures}")
    if arguments.json:
        settings: dict[str, Any] = {**vars(arguments), "folder": None, "json": None}
        arguments.json.write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
