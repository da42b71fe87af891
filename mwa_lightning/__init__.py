"""Adapt a frozen vision-language model to image-text retrieval by training a few percent of its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mwa_lightning.hub import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import `load` when it is first used, so that the command line answers without importing torch."""
    if name == "load":
        from mwa_lightning.hub import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
