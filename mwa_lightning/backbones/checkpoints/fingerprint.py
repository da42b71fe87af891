"""The identity of a backbone's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and fp32 values, in the order of the names.

    Taken of the tensors as a file holds them, before interpolation, casting and training: a model at another
    resolution or precision keeps the fingerprint of its file, another model has another.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(f"{name} {values.shape}\n".encode())
        digest.update(values.astype("<f4", copy=False).data)
    return digest.hexdigest()
