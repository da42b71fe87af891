"""A look at every file of a data set, before a run does it: all problems at once, with counts and hashes."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mwa_lightning.data.files.long_work import Follow, unseen
from mwa_lightning.data.files.problems import Problem, Problems
from mwa_lightning.data.images.reader import ImageReader
from mwa_lightning.data.loading.worker_processes import end_with_parent
from mwa_lightning.data.samples.records import RetrievalSplit
from mwa_lightning.data.samples.statements import StatementSplit
from mwa_lightning.data.sources import Source, source_of
from mwa_lightning.data.storage.stores import DamagedShard, MissingImage
from mwa_lightning.errors import DataError, counted, one_line
from mwa_lightning.system.whole_files import file_sha256

AnySplit = RetrievalSplit | StatementSplit

_SPLITS = ("train", "val", "test")
_IMAGES_A_TASK = 64
_ONE_COLOUR = 16  # of 255: what compression makes of one, and 12 bits in 16
_reader: ImageReader  # of a process of the pool


class SplitCount(NamedTuple):
    """How large a split is, and a hash over its image names in file order.

    `samples` are its captions or statements, as `samples_are` says; `labels` counts those of each class.
    """

    name: str
    images: int
    samples: int
    samples_are: str
    names_sha256: str
    labels: dict[str, int]


class _Look(NamedTuple):
    """A digest of an image's pixels, which tells it in whatever file, or what is wrong with it."""

    digest: bytes | None = None
    seen: tuple[str, ...] = ()
    problem: Problem | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found in a data set."""

    layout: str
    annotations: dict[Path, str]  # the SHA-256 of each file
    splits: list[SplitCount]
    problems: list[Problem]
    shared_pictures: list[str]
    notes: list[str]
    read_as: list[str] = field(default_factory=list)

    @property
    def fatal(self) -> bool:
        """Whether a run would fail; the same picture in two splits is none of its business."""
        return bool(self.problems)


def inspect(data: Mapping[str, Any], *, workers: int = 0, follow: Follow = unseen) -> Report:
    """Read the annotations of a data set and decode each of its images; of shards, compare the checksums too.

    Args:
        data: Its configuration: `layout`, `root` or `shards`, and where given `annotations`, `images`, `classes`,
            `exif`, `background`.
        workers: Processes that decode images; 0 = decode here.
        follow: Is shown how far it is.
    """
    try:
        source = source_of(data)
    except DataError as error:
        return Report(
            layout=data["layout"],
            annotations={},
            splits=[],
            problems=[Problem("not found", str(error))],
            shared_pictures=[],
            notes=[],
        )
    problems = source.problems(
        collect=True,
        skip_rows=data.get("skip_bad_rows", 0),
        skip_in_evaluation=data.get("skip_bad_rows_in_eval", False),
    )
    splits: Mapping[str, AnySplit] = source.read(problems)
    _note_missing_splits(splits, source, problems)
    for message in source.store.damage(thorough=True, follow=follow):
        problems.add("damaged shard", message)
    reader = source.image_reader(exif=data.get("exif"), background=data.get("background", "auto"))
    digests = _examine_images(splits, reader, problems, workers, follow)
    return Report(
        layout=source.layout,
        annotations={file: file_sha256(file) for file in source.files()},
        splits=[_count(split) for split in splits.values()],
        problems=problems.found,
        shared_pictures=list(_shared(splits.values(), digests)),
        notes=problems.notes,
        read_as=problems.read_as,
    )


def format_report(report: Report, *, most: int = 20) -> str:
    """The report for people.

    Args:
        report: What was found.
        most: How many problems of a kind to print.
    """
    lines = [f"data={report.layout}"]
    lines += [f"annotations {file}, sha256 {digest}" for file, digest in report.annotations.items()]
    lines += [f"read as: {line}" for line in report.read_as]
    for split in report.splits:
        labels = ", ".join(f"{name} {count:,}" for name, count in split.labels.items())
        samples = counted(split.samples, split.samples_are[:-1]) + (f" ({labels})" if labels else "")
        lines.append(f"{split.name}: {counted(split.images, 'image')}, {samples}, sha256 of names {split.names_sha256}")
    for kind, count in Counter(problem.kind for problem in report.problems).items():
        lines.append(f"{kind}: {count:,}")
        lines += _some([problem.message for problem in report.problems if problem.kind == kind], most)
    if report.shared_pictures:
        lines.append(
            f"same image in two splits (no error, but metrics may be too high): {len(report.shared_pictures):,}"
        )
        lines += _some(report.shared_pictures, most)
    lines += map(one_line, report.notes)
    ends = [counted(len(report.problems), "problem")] if report.problems else []
    ends += [f"{counted(len(report.shared_pictures), 'image')} in two splits"] if report.shared_pictures else []
    lines.append(", ".join(ends) or "no problems")
    return "\n".join(lines)


def _note_missing_splits(splits: Mapping[str, AnySplit], source: Source, problems: Problems) -> None:
    """Say what a split that is not there would be needed for; a data set without any is of no use."""
    if not splits and not problems.found:
        problems.add("empty", f"{source.annotations} lists nothing: add images and their texts")
    for name in _SPLITS if splits else ():
        if name not in splits and (name != "val" or "train" in splits):
            problems.note(f"no {name} split: {source.without(name, splits)}")


def _some(messages: list[str], most: int) -> list[str]:
    more = len(messages) - most
    return [f"  {one_line(message)}" for message in messages[:most]] + ([f"  and {more:,} more"] if more > 0 else [])


def _count(split: AnySplit) -> SplitCount:
    names = hashlib.sha256("\n".join(split.pictures.names).encode("utf-8"))
    labels = {}
    if isinstance(split, StatementSplit):
        labels = {name: int((split.statements.labels == i).sum()) for i, name in enumerate(split.classes)}
    return SplitCount(split.name, len(split.pictures), len(split), split.samples_are, names.hexdigest(), labels)


def _examine_images(
    splits: Mapping[str, AnySplit], reader: ImageReader, problems: Problems, workers: int, follow: Follow
) -> dict[str, bytes]:
    """Decode each image once; the digest of each that can be. What else was seen becomes notes."""
    paths = list(dict.fromkeys(picture.path for split in splits.values() for picture in split.pictures))
    laid = "their alpha is dropped" if reader.background is None else f"they are laid on rgb{reader.background}"
    notes = {  # what they are, and what is done or to be done about them
        "outside": (f"images outside of {reader.store.folder}", "shards=DIR takes them only with shards_outside=true"),
        "transparent": ("images that are transparent somewhere", f"{laid} (data.background)"),
        "flat": ("images of one colour, or nearly so", "look whether they are as they should be"),
    }
    seen: dict[str, list[str]] = {note: [] for note in notes}
    digests = {}
    with closing(_examined(paths, reader, workers)) as examined, follow("looking at images", len(paths)) as advance:
        for path, look in zip(paths, examined, strict=True):
            if look.problem is not None:
                problems.add(*look.problem)
            elif look.digest is not None:
                digests[path] = look.digest
                for note in look.seen:
                    seen[note].append(path)
            advance()
    for note, of in seen.items():
        if of:
            what, then = notes[note]
            problems.note(f"{what}: {len(of):,}, {of[0]} the first; {then}")
    return digests


def _examined(paths: list[str], reader: ImageReader, workers: int) -> Generator[_Look, None, None]:
    if not workers:
        yield from map(partial(_examine, reader=reader), paths)
        return
    # Forked: a fresh interpreter would import from the current directory first.
    forked = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, mp_context=forked, initializer=_take_reader, initargs=(reader,))
    try:
        yield from pool.map(_examine_here, paths, chunksize=_IMAGES_A_TASK)
    except OSError as error:
        for process in multiprocessing.active_children():
            process.kill()  # those that did start would wait for ever, and this one for them
            process.join()
        raise DataError(
            f"data.num_workers={workers}: so many processes cannot be started ({error.strerror}): take fewer"
        ) from error
    except BrokenProcessPool as error:
        raise DataError(
            "a process that looks at images was ended, as happens where memory is short: take a lower data.num_workers "
            "(0 looks at them one by one)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _take_reader(reader: ImageReader) -> None:
    """Keep the reader in a process of the pool: with an index of shards it is large, and no part of a task."""
    end_with_parent()
    global _reader
    _reader = reader


def _examine_here(path: str) -> _Look:
    return _examine(path, reader=_reader)


def _examine(path: str, *, reader: ImageReader) -> _Look:
    try:
        image, transparent = reader.read(path)
        pixels = np.asarray(image)
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=16, salt=b"%dx%d" % image.size)
    except DamagedShard:  # the checksum of the whole shard has told
        return _Look()
    except MissingImage as error:
        return _Look(problem=Problem("missing image", str(error)))
    except DataError as error:
        kind = "image of 0 bytes" if reader.store.size(path) == 0 else "unreadable image"
        return _Look(problem=Problem(kind, str(error)))
    except MemoryError:
        return _Look(
            problem=Problem("unreadable image", f"image {path} needs more memory than there is: scale it down")
        )
    # As where 8 bits lie in a file of 16, where black lines lie on black, or where a camera had its lid on.
    flat = bool(np.ptp(pixels, axis=(0, 1)).max() <= _ONE_COLOUR)
    said = {"outside": reader.store.lies_outside(path), "transparent": transparent, "flat": flat}
    return _Look(digest.digest(), tuple(note for note, holds in said.items() if holds))


def _shared(splits: Iterable[AnySplit], digests: Mapping[str, bytes]) -> Iterator[str]:
    first: dict[bytes, tuple[str, str]] = {}
    for split in splits:
        for picture in split.pictures:
            digest = digests.get(picture.path)
            if digest is None:
                continue
            other_split, other_name = first.setdefault(digest, (split.name, picture.name))
            if other_split != split.name:
                yield f"{other_name} ({other_split}) and {picture.name} ({split.name})"
