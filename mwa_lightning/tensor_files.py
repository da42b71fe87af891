"""Safetensors files that appear whole, and with the same bytes for the same content."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata under a temporary name, flush them to the disk and rename the file."""
    content = memoryview(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
    header = json.loads(bytes(content[8 : (end := 8 + int.from_bytes(content[:8], "little"))]))
    # Written by hand: the library puts metadata in another order every time.
    packed = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}).encode()
    packed += b" " * (-len(packed) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.writelines((len(packed).to_bytes(8, "little"), packed, content[end:]))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
