"""Files that ship with the package, referred to as `asset://NAME`."""

from __future__ import annotations

from pathlib import Path

import mwa_lightning
from mwa_lightning.errors import CheckpointError

SCHEME = "asset://"
FOLDER = Path(mwa_lightning.__file__).parent / "assets"


def locate(reference: str | Path) -> Path:
    """The path of a file: `asset://NAME` is a file of the package, anything else a path, `~` expanded.

    Raises CheckpointError if the package has no such file; whether another path exists is not looked at.
    """
    text = str(reference)
    if not text.startswith(SCHEME):
        return Path(text).expanduser()
    path = FOLDER / text.removeprefix(SCHEME)
    if not path.is_file():
        shipped = ", ".join(sorted(file.name for file in FOLDER.glob("*") if file.is_file())) or "none"
        raise CheckpointError(f"{text}: the package ships no such file (it has: {shipped}); give a path instead")
    return path
