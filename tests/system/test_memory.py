"""What is said where memory does not suffice."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from mwa_lightning.errors import DataError
from mwa_lightning.system.memory import out_of_memory

HOW = (
    "lower data.batch_size, data.num_workers or data.eval_batch_size, or free some, and start the same command again; "
    "a training run resumes from its last checkpoint"
)


def test_out_of_memory__of_a_real_allocation() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**60, dtype=torch.uint8)
    said = str(out_of_memory(failed.value))
    assert said == f"memory does not suffice (the last request was for {2**60} bytes): {HOW}"
    with pytest.raises(MemoryError) as failed_too:
        bytearray(2**62)
    assert str(out_of_memory(failed_too.value)) == f"memory does not suffice: {HOW}"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),  # of a fork
        RuntimeError("can't start new thread"),
        RuntimeError("std::bad_alloc"),
        ImportError("libx.so: failed to map segment from shared object"),
        MemoryError(
            "Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        ),
    ],
)
def test_out_of_memory__one_line(error: Exception) -> None:
    outer = ValueError("of a library")
    outer.__cause__ = error
    for each in (error, outer):
        assert str(out_of_memory(each)) == f"memory does not suffice: {HOW}"


def test_out_of_memory__of_a_gpu() -> None:
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 1 GiB"
    )
    said = str(out_of_memory(error))
    assert said.startswith("the memory of the GPU does not suffice (the last request was for 2.50 GiB): lower data.bat")


def test_out_of_memory__nothing_else() -> None:
    told = DataError("one line for a person")
    told.__cause__ = MemoryError()
    for error in (told, RuntimeError("shapes differ"), OSError(errno.ENOSPC, "No space"), ValueError("out of memory")):
        assert out_of_memory(error) is None
