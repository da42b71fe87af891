"""The identity of weights."""

from __future__ import annotations

import hashlib

import torch

from mwa_lightning.backbones.checkpoints.fingerprint import fingerprint


def test_fingerprint__is_a_sha256_over_names_shapes_and_fp32_bytes_in_name_order() -> None:
    tensors = {"b": torch.tensor([1.0, 2.0], dtype=torch.float16), "a": torch.tensor([[3.0]])}
    expected = hashlib.sha256(
        b"a (1, 1)\n" + bytes.fromhex("00004040") + b"b (2,)\n" + bytes.fromhex("0000803f00000040")
    )
    assert fingerprint(tensors) == expected.hexdigest()


def test_fingerprint__is_the_same_in_another_precision_that_holds_the_values() -> None:
    tensors = {"a": torch.tensor([0.5, -1.25])}
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert fingerprint({"a": tensors["a"].to(dtype)}) == fingerprint(tensors)


def test_fingerprint__differs_by_value_name_and_shape() -> None:
    values = torch.arange(4.0)
    others = [{"a": values.view(2, 2)}, {"b": values}, {"a": values + 1e-6}, {"a": values.flip(0)}, {}]
    prints = {fingerprint({"a": values}), *(fingerprint(other) for other in others)}
    assert len(prints) == 6


def test_fingerprint__ignores_order_and_memory_layout() -> None:
    first, second = torch.randn(3, 4), torch.randn(2)
    strided = first.t().contiguous().t()
    assert fingerprint({"a": first, "b": second}) == fingerprint({"b": second, "a": strided})
