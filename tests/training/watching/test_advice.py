"""What to change, for a run that does not learn."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from mwa_lightning.training.watching.advice import advise
from mwa_lightning.training.watching.verdicts import Finding, Kind

NOTHING = math.log(64)
EPOCHS = "trainer.max_epochs=4"  # twice those of the run


def finding(kind: Kind, *, of: str = "contrast", loss: float = NOTHING, loss_at_start: float = NOTHING) -> Finding:
    return Finding(kind, of, 0, 0.0, 0.8, loss, loss_at_start, NOTHING)


@pytest.mark.parametrize(
    ("options", "found", "said"),
    [
        ("optim.lr=1e-3", finding("stuck"), f"optim.lr=0.003 or {EPOCHS}"),
        # A rate that moves nothing is too low wherever the loss begins; one that has moved it up is too high.
        (
            "optim.lr=1e-9 task.logit_scale=pretrained",
            finding("stuck", loss=19.4, loss_at_start=19.5),
            f"task.logit_scale=fitted or optim.lr=3e-09 or {EPOCHS}",
        ),
        ("optim.lr=1", finding("stuck", loss=9.0), "optim.lr=0.3 or adapter.scale=0.3"),
        (
            "optim.lr=1 task.logit_scale=pretrained",
            finding("stuck", loss=9.0, loss_at_start=19.5),
            "task.logit_scale=fitted or optim.lr=0.3 or adapter.scale=0.3",
        ),
        ("optim.lr=auto", finding("stuck"), f"optim.lr=0.03 or {EPOCHS}"),  # three times the highest so far
        (
            "optim.lr=1 task.logit_scale=36",
            finding("collapsed", of="images", loss_at_start=19.5),
            "task.logit_scale=fitted or optim.lr=0.3 or adapter.scale=0.3",
        ),
        ("optim.lr=1 task.logit_scale=36", finding("collapsed", of="images"), "optim.lr=0.3 or adapter.scale=0.3"),
        ("optim.lr=1 trainer.gradient_clip_val=1", finding("diverging"), "optim.lr=0.3 or adapter.scale=0.3"),
        ("optim.lr=1", finding("dead", of="heads"), "optim.lr=0.3 or adapter.scale=0.3"),
        ("adapter.scale=0.001", finding("dead", of="adapter"), "adapter.scale=0.6"),
    ],
)
def test_advise(make_config: Callable[..., DictConfig], options: str, found: Finding, said: str) -> None:
    assert advise(make_config(*options.split()), found, 0.01) == f"set {said}"


def test_advise__nothing_to_tell_apart(make_config: Callable[..., DictConfig]) -> None:
    alone = finding("dead", of="heads")._replace(knowing_nothing=0.0)
    assert advise(make_config("data.batch_size=1"), alone, 0.01) == "set data.batch_size=64"
    assert advise(make_config(), alone, 0.01).startswith("look at the data: ")
