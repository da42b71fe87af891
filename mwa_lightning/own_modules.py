"""Modules of the user's own project, which lie in the current folder rather than being installed.

The folder comes last among the places that modules come from, and only where nothing else has the module: what lies
there shadows nothing. Processes that load data get the places from the process that starts them.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def make_importable(module: str) -> None:
    """Let a dotted module be found in the current folder, if it is found nowhere else."""
    top = module.partition(".")[0]
    here = str(Path.cwd())
    if top in sys.modules or here in sys.path or _is_found(top):
        return
    sys.path.append(here)
    if not _is_found(top):
        sys.path.remove(here)


def _is_found(top: str) -> bool:
    try:
        return importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):  # no name that a module can have
        return False
