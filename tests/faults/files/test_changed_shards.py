"""Shards that change while a run reads them: it ends with one line, or goes on with the bytes that it began with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mwa_lightning.data.shard_writing import write_shards
from mwa_lightning.data.shards import store as shards
from mwa_lightning.data.shards.store import INDEX, SUMS
from mwa_lightning.data.sources import find_source
from tests.faults.conftest import Disturbed

SHARD = "shard-00000.tar"
AGAIN = "copy it again from where the shards were made, or make them again with mwa-prepare shards=DIR"


def pack(root: Path, folder: Path) -> Path:
    """Shards of a data set, a few pictures in each."""
    assert write_shards(find_source(layout="karpathy", root=root), folder, shard_bytes=12_000).shards > 2
    return folder


@pytest.fixture(scope="module")
def packed(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of the runs."""
    return pack(data_root, tmp_path_factory.mktemp("packed") / "shards")


@pytest.fixture(scope="module")
def foreign(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with pictures of the same names, sizes and captions that show something else."""
    root = Path(shutil.copytree(data_root, tmp_path_factory.mktemp("foreign") / "data"))
    for path in root.glob("*.jpg"):
        with Image.open(path) as image:
            red, green, blue = image.split()
        Image.merge("RGB", (blue, red, green)).save(path)
    return pack(root, root.with_name("shards"))


def put(source: Path, target: Path) -> None:
    """As a careful copy does it: whole, then by its name."""
    shutil.copy(source, target.with_name("new"))
    target.with_name("new").replace(target)


def same_size(folder: Path, foreign: Path) -> None:
    size = (folder / SHARD).stat().st_size
    (folder / "new").write_bytes((foreign / SHARD).read_bytes()[:size].ljust(size, b"\0"))
    (folder / "new").replace(folder / SHARD)


CHANGES: dict[str, Callable[[Path, Path], Any]] = {
    "replaced, same size": same_size,
    "replaced, other size": lambda folder, foreign: put(foreign / "shard-00001.tar", folder / SHARD),
    "truncated": lambda folder, foreign: os.truncate(folder / SHARD, 600),
    "overwritten": lambda folder, foreign: shutil.copy(foreign / SHARD, folder / SHARD),
    "deleted": lambda folder, foreign: (folder / SHARD).unlink(),
    "index replaced": lambda folder, foreign: put(foreign / INDEX, folder / INDEX),
    "all replaced": lambda folder, foreign: [put(path, folder / path.name) for path in foreign.glob("*.*")],
    "folder renamed": lambda folder, foreign: folder.rename(folder.with_name("away")),
}
# How the run has the files: in this process, open for good or opened anew each time, or open in a worker.
CASES = [
    *((change, "open") for change in CHANGES),
    *((change, "opened again") for change in CHANGES if change not in ("truncated", "overwritten", "index replaced")),
    ("truncated", "in a worker"),
    ("deleted", "in a worker"),
]
# What is still as it was where the files are open already.
KEPT = {"replaced, same size", "replaced, other size", "deleted", "all replaced", "folder renamed"}
SAYS = {
    "replaced, same size": "{folder}/shard-00000.tar is damaged at ",
    "replaced, other size": "{folder}/shard-00000.tar is ",
    "truncated": "{folder}/shard-00000.tar is cut short at ",
    "overwritten": "{folder}/shard-00000.tar is damaged at ",
    "deleted": "{folder}/shard-00000.tar is missing: ",
    "all replaced": "{folder}/shard-0000",
    "folder renamed": "the data at {folder}/annotations/dataset.json has gone while it was used (No such file",
}


@pytest.mark.slow
@pytest.mark.parametrize(("change", "files"), CASES)
def test_train__never_on_other_pictures(
    change: str,
    files: str,
    packed: Path,
    foreign: Path,
    disturbed: Disturbed,
    happening: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "shards"))
    if files == "opened again":
        monkeypatch.setattr(shards, "OPEN_SHARDS", 1)
    words = [f"data.shards={folder}", "data.root=none", f"data.num_workers={int(files == 'in a worker')}"]
    with happening("writing last.ckpt of step 4", lambda: CHANGES[change](folder, foreign)):
        if change == "index replaced" or (change in KEPT and files != "opened again"):
            disturbed.ends(*words)  # with the bytes of a run that nothing happened to
            return
        said = disturbed.fails(*words)
    assert said.startswith(f"mwa-train: error: {SAYS[change].format(folder=folder)}"), said
    assert said.endswith(AGAIN) or change == "folder renamed"
    assert disturbed.saved_step >= 4
    if change not in ("replaced, same size", "overwritten"):  # only their checksums tell, where they are read
        disturbed.fails(*words)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(packed, folder)
    disturbed.ends(*words)


@pytest.mark.slow
def test_resume__other_shards_in_the_place_of_the_first(
    packed: Path, foreign: Path, disturbed: Disturbed, tmp_path: Path, happening: Callable[..., Any]
) -> None:
    """They are whole, and of other pictures: a run that was stopped does not go on with them."""
    folder = Path(shutil.copytree(packed, tmp_path / "shards"))
    words = [f"data.shards={folder}", "data.root=none"]
    with happening("writing last.ckpt of step 4", lambda: os.truncate(folder / SHARD, 600)):
        disturbed.fails(*words)
    shutil.rmtree(folder)
    shutil.copytree(foreign, folder)
    assert f"run_dir={disturbed.run}: holds a run on another train split (12 images, 24 " in disturbed.fails(*words)
    shutil.copy(packed / SUMS, folder / SUMS)  # a copy that was not finished
    assert f"{folder / INDEX} is damaged (its SHA-256 is not the one in {SUMS}): {AGAIN}" in disturbed.fails(*words)
    shutil.rmtree(folder)
    shutil.copytree(packed, folder)
    disturbed.ends(*words)
