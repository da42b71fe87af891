"""Whose failure an error is, where a signal has come too."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed

from mwa_lightning.errors import Stopped
from mwa_lightning.training import evaluate, stopping
from mwa_lightning.training.signals import Signals

PEER_GONE = (
    RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]"),
    distributed.DistBackendError("NCCL communicator was aborted on rank 3"),
)
OWN = (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
TWO: Any = SimpleNamespace(count=2)


def told() -> Signals:
    signals = Signals()
    signals.note(signal.SIGTERM)
    return signals


@pytest.mark.parametrize("error", PEER_GONE)
def test_left_alone__by_others_that_had_the_signal_too(error: RuntimeError) -> None:
    assert str(stopping._left_alone(error, told(), TWO)) == "SIGTERM, as the other ranks were"
    with (
        pytest.raises(Stopped, match=r"^stopped by SIGTERM; start the same"),
        evaluate._beginning_anew(told()),
    ):
        raise error


@pytest.mark.parametrize("error", OWN)
def test_left_alone__a_failure_of_its_own_is_none(error: RuntimeError) -> None:
    """It would be requeued, and fail for ever without a word."""
    assert stopping._left_alone(error, told(), TWO) is None
    with pytest.raises(type(error), match=str(error)), evaluate._beginning_anew(told()):
        raise error
