"""The guards on a toy module: it is the guard, Lightning's loop and our optimizer that are tested."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mwa_lightning.errors import NotFinite, TrainingError
from mwa_lightning.training.assembly.precision import GatedMixedPrecision
from mwa_lightning.training.callbacks.guards import MissingGradientGuard, NonFiniteGuard
from mwa_lightning.training.lightning_warnings import quiet
from mwa_lightning.training.optim import GatedAdamW


class Batch(NamedTuple):
    x: Tensor
    sample_ids: list[str]


class Toy(pl.LightningModule):
    """Two linear layers; a micro-batch listed in `bad` gets a NaN in its loss or in one gradient."""

    def __init__(self, *, bad: dict[int, str] | None = None, unused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 1)})
        if unused:
            self.model["third"] = nn.Linear(4, 4)
        self.bad = bad or {}
        self.history: list[Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        hidden = self.model["first"](batch.x)
        what = self.bad.get(batch_idx)
        if what == "gradient":
            hidden.register_hook(lambda gradient: gradient * float("nan"))
        loss: Tensor = self.model["second"](hidden).square().mean()
        return loss * float("inf") if what == "loss" else loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.history.append(self.model["first"].weight.detach().clone())

    def configure_optimizers(self) -> GatedAdamW:
        return GatedAdamW(self.parameters(), lr=0.01, fused=True)


def run(toy: Toy, *callbacks: pl.Callback, batches: int = 6, **options: Any) -> pl.Trainer:
    torch.manual_seed(1)
    data = [Batch(torch.randn(3, 4), [f"picture_{i}#{j}" for j in range(3)]) for i in range(batches)]
    with quiet():
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
            **options,
        )
        trainer.fit(toy, DataLoader(data, batch_size=None))
    return trainer


def test_stop__names_loss_step_and_samples() -> None:
    toy = Toy(bad={3: "loss"})
    with pytest.raises(
        NotFinite, match=r"^step 3: the loss is not finite; samples: picture_3#0, picture_3#1, picture_3#2"
    ) as caught:
        run(toy, NonFiniteGuard(action="stop"))
    assert "\n" not in str(caught.value)
    assert torch.equal(toy.model["first"].weight, toy.history[2])


def test_stop__names_the_first_bad_gradient() -> None:
    toy = Toy(bad={2: "gradient"})
    with pytest.raises(NotFinite, match=r"^step 2: the gradient of first\.weight is not finite") as caught:
        run(toy, NonFiniteGuard(action="stop"))
    assert "picture_2#1" in str(caught.value)
    assert torch.equal(toy.model["first"].weight, toy.history[1])


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_skip__weights_unchanged_and_counted(what: str, caplog: pytest.LogCaptureFixture) -> None:
    toy, guard = Toy(bad={1: what, 4: what}), NonFiniteGuard(action="skip")
    with caplog.at_level(logging.WARNING, logger="mwa_lightning"):
        trainer = run(toy, guard)
    assert guard.skipped == 2
    assert trainer.callback_metrics["train/skipped_steps"] == 2
    assert [record.message.split(":")[0] for record in caplog.records] == ["step 1", "step 4"]
    changed = [not torch.equal(a, b) for a, b in zip(toy.history, toy.history[1:], strict=False)]
    assert changed == [False, True, True, False, True]
    assert all(weights.isfinite().all() for weights in toy.history)


def test_skip__a_run_of_bad_steps_ends() -> None:
    toy = Toy(bad=dict.fromkeys(range(2, 40), "loss"))
    with pytest.raises(TrainingError, match=r"^step 21: .* 20th skipped step in a row"):
        run(toy, NonFiniteGuard(action="skip"), batches=40)


def test_stop__names_the_micro_batch_of_an_accumulated_step() -> None:
    with pytest.raises(NotFinite, match=r"^step 1: the loss is not finite; samples: picture_2#0, pic"):
        run(Toy(bad={2: "loss"}), NonFiniteGuard(action="stop"), accumulate_grad_batches=2)
    with pytest.raises(TrainingError, match=r"samples: picture_2#0.*picture_3#2"):
        run(Toy(bad={3: "gradient"}), NonFiniteGuard(action="stop"), accumulate_grad_batches=2)


def test_scaled__overflow_is_no_error_but_a_loss_is() -> None:
    toy, guard = Toy(bad={2: "gradient"}), NonFiniteGuard(action="stop")
    run(toy, guard, plugins=[GatedMixedPrecision(device="cpu")], gradient_clip_val=1.0)
    assert torch.equal(toy.history[1], toy.history[2])
    assert not torch.equal(toy.history[2], toy.history[3])
    with pytest.raises(TrainingError, match=r"^step 2: the loss"):
        run(Toy(bad={2: "loss"}), NonFiniteGuard(action="stop"), plugins=[GatedMixedPrecision(device="cpu")])


def test_scaled__twenty_overflows_in_a_row_are_an_error() -> None:
    toy = Toy(bad=dict.fromkeys(range(40), "gradient"))
    with pytest.raises(TrainingError, match=r"20th step in a row in 16-mixed.*bf16-mixed"):
        run(toy, NonFiniteGuard(action="stop"), batches=40, plugins=[GatedMixedPrecision(device="cpu")])


def test_guard__a_good_run_is_the_same_to_the_bit() -> None:
    plain, guarded = Toy(), Toy()
    run(plain)
    run(guarded, NonFiniteGuard(action="stop"), MissingGradientGuard(declared_unused=()))
    assert all(torch.equal(a, b) for a, b in zip(plain.history, guarded.history, strict=True))


def test_missing_gradient__named_after_two_steps() -> None:
    toy = Toy(unused=True)
    with pytest.raises(TrainingError, match=r"^no gradient after two steps: third\.bias, third\.weight\. "):
        run(toy, MissingGradientGuard(declared_unused=()))
    assert len(toy.history) == 1


def test_missing_gradient__declared_unused_is_fine() -> None:
    run(Toy(unused=True), MissingGradientGuard(declared_unused={"third.weight", "third.bias"}))


def test_missing_gradient__zero_is_not_missing() -> None:
    """Zero-initialised up-projections under a warm-up from 0 have gradients of exactly zero at first."""
    toy = Toy()
    nn.init.zeros_(toy.model["second"].weight)
    run(toy, MissingGradientGuard(declared_unused=()), batches=3)
