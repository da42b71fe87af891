"""The data sets that this package makes where they are missing, and where they are kept."""

from __future__ import annotations

import os
from pathlib import Path

from mwa_lightning.data.layouts import LAYOUTS
from mwa_lightning.errors import DataError

BUILT_IN = ("scenes", "scenes_nlvr2")

# What the built-in data sets are made with; their folders are named after it. Statements come in groups of four.
SCENES = {"seed": 0, "train": 2000, "val": 300, "test": 500}
SCENES_NLVR2 = {"seed": 0, "train": 8000, "dev": 500, "test": 1000}


def scenes_root(*, domain: str, layout: str = "scenes") -> Path:
    """Where a built-in data set of a domain is kept; another version of the generator has another folder."""
    from mwa_lightning.data.scenes.writing import VERSION

    sizes = "-".join(str(value) for value in (SCENES if layout == "scenes" else SCENES_NLVR2).values())
    return cache_folder() / f"{layout.replace('_', '-')}-v{VERSION}-{domain}-{sizes}"


def prepare_scenes(root: Path, *, domain: str, layout: str = "scenes") -> None:
    """Make a built-in data set at `root` unless there is one; it appears whole or not at all.

    Raises:
        DataError: The folder cannot be written, or holds something else.
    """
    annotations = LAYOUTS[layout].annotations
    assert annotations is not None
    if (root / annotations).exists():
        return
    from mwa_lightning.data.scenes.writing import write_scenes, write_scenes_nlvr2

    try:
        if layout == "scenes":
            write_scenes(root, domain=domain, **SCENES)
        else:
            write_scenes_nlvr2(root, domain=domain, **SCENES_NLVR2)
    except DataError as error:
        if not root.is_relative_to(cache_folder()):
            raise
        raise DataError(
            f"{error}: data.root=DIR, or the environment variable MWA_CACHE=DIR for all that is made anew"
        ) from error


def cache_folder() -> Path:
    """The user's folder for what can be made again: MWA_CACHE, or mwa_lightning in the one of the system."""
    if own := os.environ.get("MWA_CACHE"):
        return Path(own).expanduser()
    system = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(system).expanduser() / "mwa_lightning"
