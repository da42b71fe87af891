"""Safetensors files that appear whole, and with the same bytes for the same content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from mwa_lightning.system.whole_files import whole_file


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata. Raises StorageError if they cannot be written; an old file stays then."""
    content = memoryview(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
    header = json.loads(bytes(content[8 : (end := 8 + int.from_bytes(content[:8], "little"))]))
    # Written by hand: the library puts metadata in another order every time.
    packed = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}).encode()
    packed += b" " * (-len(packed) % 8)
    with whole_file(path) as file:
        file.writelines((len(packed).to_bytes(8, "little"), packed, content[end:]))
