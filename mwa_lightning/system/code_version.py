"""Which code runs: the commit, where the package lies in a checkout of its repository."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import mwa_lightning

CHANGED = " with changes"
_PACKAGE = Path(mwa_lightning.__file__).parent
_SECONDS = 10.0


@cache
def commit(package: Path = _PACKAGE) -> str | None:
    """The commit of the checkout that `package` lies in, with a note if code or configurations differ from it.

    None for an installed package, for one that the repository around it does not hold, and where there is no git.
    """
    if not _git(package, "ls-files", "--", "__init__.py"):
        return None
    head = _git(package, "rev-parse", "HEAD")
    if head is None:
        return None
    changed = _git(package, "status", "--porcelain", "--", ".", "../configs")
    return f"{head}{CHANGED}" if changed else head


def described() -> str:
    """The version, and the commit where it is known, for people."""
    known = commit()
    return mwa_lightning.__version__ if known is None else f"{mwa_lightning.__version__}, commit {known}"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says in a folder; None if it fails."""
    try:
        said = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip() if said.returncode == 0 else None
