"""`mwa-prepare shards=DIR` interrupted, or without room: nothing is left that passes for whole, and it begins anew.

The pictures are noise: whether they decode is nothing to the writer.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mwa_lightning.cli import prepare
from mwa_lightning.data.shards.store import INDEX, SUMS, open_shards
from mwa_lightning.errors import DataError

CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 75, signal.SIGINT: 130}
LINES = {
    signal.SIGKILL: "",
    signal.SIGTERM: "mwa-prepare: stopped by SIGTERM; start the same command again, it begins anew\n",
    signal.SIGINT: "mwa-prepare: interrupted\n",
}


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A shell starts what runs in its background deaf to Ctrl-C, and what that starts inherits it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def noise(root: Path, *, count: int) -> Path:
    """A data set of so many files of 1 to 2 kB, which begin as JPEGs do."""
    draw = random.Random(0)
    root.mkdir()
    images = []
    for number in range(count):
        (root / f"{number}.jpg").write_bytes(b"\xff\xd8\xff" + draw.randbytes(1000 + number % 1000))
        images.append({"filename": f"{number}.jpg", "split": "train", "sentences": [{"raw": "noise"}]})
    (root / "dataset.json").write_text(json.dumps({"images": images}))
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_interrupted__at_random_moments(tmp_path: Path) -> None:
    words = ["data=karpathy", f"data.root={noise(tmp_path / 'noise', count=1500)}", "shard_size_mb=0.25"]
    assert prepare.main([*words, f"shards={tmp_path / 'whole'}"]) == 0
    expected = contents(tmp_path / "whole")
    place = tmp_path / "place"
    folder = place / "shards"
    command = [Path(sys.executable).with_name("mwa-prepare"), *words, f"shards={folder}"]
    draw = random.Random(0)
    landed = []
    for told in itertools.islice(itertools.cycle(CODES), 12):
        left = set(folder.glob(".*"))  # by one that was killed: to be cleared away
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            moment = f".{draw.randrange(len(expected))}.*"  # from when this is begun
            while process.poll() is None and set(folder.glob(moment)) <= left and not (folder / SUMS).exists():
                time.sleep(0.0005)
            time.sleep(draw.uniform(0, 0.01))
            process.send_signal(told)
            said = process.communicate(timeout=60)[1]
        if (folder / SUMS).exists():  # it came too late
            (folder / ".lock").unlink(missing_ok=True)
            assert contents(folder) == expected
            folder.rename(place / f"whole_{len(list(place.iterdir()))}")
            continue
        landed.append(told)
        assert (process.returncode, said) == (CODES[told], LINES[told])
        if told is signal.SIGKILL:
            with pytest.raises(DataError, match="holds no shards of a data set, or not all of them"):
                open_shards(folder)
            if any(folder.glob("*.tar")):  # it was giving the files their names, so these prove nothing
                folder.rename(place / f"part_{len(landed)}")
        else:
            assert not folder.exists() or not any(folder.iterdir())  # which one that was killed had made
    assert set(landed) == set(CODES)
    assert prepare.main([*words, f"shards={folder}"]) == 0
    assert contents(folder) == expected


# mwa-prepare, to which Ctrl-C comes where the main thread has just taken a lock, and nobody would let go of it.
AWKWARD = """
import signal, sys, threading
from mwa_lightning.cli import prepare
enter, entered = threading.Condition.__enter__, []
def enter_and(condition):
    taken = enter(condition)
    if threading.get_ident() == threading.main_thread().ident:
        entered.append(condition)
        if len(entered) == 5:
            signal.raise_signal(signal.SIGINT)
    return taken
threading.Condition.__enter__ = enter_and
sys.exit(prepare.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("work", ["shards", "check"])
def test_interrupted__while_a_lock_is_taken(work: str, tmp_path: Path) -> None:
    words = ["data=karpathy", f"data.root={noise(tmp_path / 'noise', count=400)}"]
    words += ["check=true", "data.num_workers=1"] if work == "check" else [f"shards={tmp_path / 'new' / 'shards'}"]
    process = subprocess.run([sys.executable, "-c", AWKWARD, *words], stderr=subprocess.PIPE, text=True, timeout=100)
    assert (process.returncode, process.stderr) == (130, LINES[signal.SIGINT])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["noise"]


def test_full_disk__one_line_and_nothing_is_left(
    tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It fills up in the first shard, in a later one, in the annotations or the index, and with the last file."""
    words = ["data=karpathy", f"data.root={noise(tmp_path / 'noise', count=600)}", "shard_size_mb=0.2"]
    assert prepare.main([*words, f"shards={tmp_path / 'whole'}"]) == 0
    expected = contents(tmp_path / "whole")
    pages = {name: -(-len(content) // 4096) for name, content in expected.items()}
    needed = sum(pages.values())
    assert needed * 4096 > 1_000_000
    folder, ballast = small_disk / "place" / "shards", small_disk / "ballast"
    available = os.statvfs(small_disk).f_bavail
    rooms = (2, needed // 2, needed - pages[SUMS] - pages[INDEX] - 1, needed - pages[SUMS])
    for room in rooms:
        ballast.write_bytes(bytes(4096 * (available - room)))
        capsys.readouterr()
        assert prepare.main([*words, f"shards={folder}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == (
            f"mwa-prepare: error: shards={folder} cannot be written (No space left on device): make room or choose "
            "another folder, and start again"
        )
        assert list(small_disk.iterdir()) == [ballast]
        ballast.unlink()
    assert prepare.main([*words, f"shards={folder}"]) == 0
    assert contents(folder) == expected


def test_mount__is_filled_as_a_folder(tmp_path: Path, small_disk: Path) -> None:
    words = ["data=karpathy", f"data.root={noise(tmp_path / 'noise', count=3)}", f"shards={small_disk}"]
    assert prepare.main(words) == 0
    assert list(open_shards(small_disk).damage(thorough=True)) == []


def test_read_only_disk__is_told_at_once(tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And shards that lie on one are read like others."""
    words = ["data=karpathy", f"data.root={noise(tmp_path / 'noise', count=3)}"]
    assert prepare.main([*words, f"shards={small_disk / 'there'}"]) == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert prepare.main([*words, f"shards={small_disk / 'new' / 'shards'}"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(
        f"mwa-prepare: error: shards={small_disk / 'new' / 'shards'} cannot be written (Read-only file "
    )
    assert prepare.main([*words, f"shards={small_disk / 'there'}"]) == 0
    assert capsys.readouterr().out.endswith(f": {small_disk / 'there'} (there already)\n")
    assert list(open_shards(small_disk / "there").damage(thorough=True)) == []
