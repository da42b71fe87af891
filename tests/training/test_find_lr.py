"""`training.find_lr`: which rate the losses suggest, and that nothing but the picture and its numbers stays."""

from __future__ import annotations

import csv
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import nn

from mwa_lightning.cli import train, tune
from mwa_lightning.data.scenes.writing import write_scenes_nlvr2
from mwa_lightning.errors import Stopped
from mwa_lightning.system.signals import Signals
from mwa_lightning.training import find_lr
from mwa_lightning.training.callbacks.stopping import StopAgreement
from mwa_lightning.training.find_lr import HIGHEST, LOWEST, RangeTest, as_before, suggest
from mwa_lightning.training.fit import fit

MakeConfig = Callable[..., DictConfig]
RATES = [LOWEST * (HIGHEST / LOWEST) ** (step / 99) for step in range(100)]


def descent(curvature: float, *, noise: float = 0.0) -> list[float]:
    """The losses of a weight that goes down a parabola at rising rates."""
    weight, losses, draw = 3.0, [], random.Random(0)
    for rate in RATES:
        losses.append(0.5 * curvature * weight**2 + draw.gauss(0, noise))
        if losses[-1] > 4 * losses[0]:
            break
        weight -= rate * curvature * weight
    return losses


@pytest.mark.parametrize("curvature", [3.0, 100.0, 10_000.0])
def test_suggest__on_a_parabola_below_the_rate_that_diverges(curvature: float) -> None:
    losses = descent(curvature, noise=0.01 * curvature)
    found = suggest(RATES[: len(losses)], losses)
    assert found.rate is not None
    assert found.lowest is not None
    # At 2 / curvature it diverges, and far below 0.1 / curvature a hundred steps do nothing.
    assert 0.01 / curvature < found.rate < 2 / curvature
    assert found.rate < found.lowest


def test_suggest__none_where_no_loss_falls() -> None:
    draw = random.Random(0)
    flat = [4.0 + draw.gauss(0, 0.1) for _ in RATES]
    assert suggest(RATES, flat).rate is None
    assert suggest(RATES, [4.0 + 0.01 * step for step in range(100)]).rate is None
    assert suggest(RATES[:1], [4.0]).rate is None


def test_suggest__what_is_not_finite_is_left_out() -> None:
    losses = descent(100.0)[:70]
    whole = suggest(RATES[:70], losses)
    cut = suggest(RATES[:72], [*losses, math.inf, math.nan])
    assert (cut.rate, cut.lowest) == (whole.rate, whole.lowest)
    assert cut.smoothed[:70] == whole.smoothed
    assert all(map(math.isnan, cut.smoothed[70:]))


def test_as_before__bytes_of_weights_buffers_and_random_states() -> None:
    task = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    task[0].bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    with as_before(task):
        optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1)
        task(torch.randn(4, 3)).pow(2).sum().backward()
        optimizer.step()
        random.random()
        np.random.rand()
        assert not torch.equal(task[0].weight, before["0.weight"])
        assert not torch.equal(task[1].running_mean, before["1.running_mean"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.state_dict().items())
    assert all(parameter.grad is None for parameter in task.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # type: ignore[index]


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(find_lr, "STEPS", 7)
    return 7


def rows_of(run: Path) -> list[dict[str, float]]:
    with (run / "lr_find.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_fit__a_test_leaves_two_files_and_the_run_after_it_as_it_would_be(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(make_config("training.find_lr=true", "optim.layer_decay=0.5")) == {}
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == ["lr_find.csv", "lr_find.png"]
    rows = rows_of(run)
    assert [row["lr"] for row in rows] == pytest.approx(RATES[: len(rows)])
    assert suggest([row["lr"] for row in rows], [row["loss"] for row in rows]).smoothed == pytest.approx(
        [row["smoothed"] for row in rows], nan_ok=True
    )
    assert Image.open(run / "lr_find.png").size == (768, 480)
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith(("the loss is lowest at ", "at no rate does the loss fall"))
    # The same folder takes the run, which is what it is without the test; and the folder of a run takes the test.
    fit(make_config("trainer.max_epochs=1"))
    fit(make_config("trainer.max_epochs=1", run="other"))
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "lr_find" not in path.name}
    assert kept[run / "adapter.safetensors"] == (tmp_path / "other" / "adapter.safetensors").read_bytes()
    fit(make_config("trainer.max_epochs=1", "training.find_lr=true"))
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.parametrize(
    "options",
    [
        ("adapter=modex",),
        ("adapter=full", "trainer.accumulate_grad_batches=2", "optim.layer_decay=0.5"),
        ("adapter=head_only",),
        ("task=reasoning", "data=scenes_nlvr2"),
    ],
)
def test_fit__every_method_and_task(
    options: tuple[str, ...], make_config: MakeConfig, few_steps: int, tmp_path: Path
) -> None:
    if "task=reasoning" in options:
        write_scenes_nlvr2(tmp_path / "data", domain="target", seed=3, train=24, dev=8, test=12)
        options = (*options, f"data.root={tmp_path / 'data'}")
    fit(make_config("training.find_lr=true", *options))
    rows = rows_of(tmp_path / "run")
    assert 3 <= len(rows) <= few_steps
    assert all(math.isfinite(row["loss"]) for row in rows[:3])


def test_range_test__rates_of_layers_and_the_end_at_divergence() -> None:
    class Trainer:
        should_stop = False
        strategy = type("Strategy", (), {"reduce": staticmethod(lambda tensor, reduce_op: tensor)})

    test, trainer = RangeTest(StopAgreement(Signals()), steps=100), Trainer()
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [weight], "scale": 0.25}], lr=1.0)
    for number, loss in enumerate([4.0] * 20 + [400.0]):
        assert not trainer.should_stop
        test.on_before_optimizer_step(trainer, None, optimizer)  # type: ignore[arg-type]
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25 * RATES[number])
        test.on_train_batch_end(trainer, None, {"loss": torch.tensor(loss)}, None, number)  # type: ignore[arg-type]
    assert trainer.should_stop
    assert test.losses[-1] == 400.0
    test.stop.agreed = True
    with pytest.raises(Stopped, match="during the learning-rate range test"):
        test.on_train_batch_end(trainer, None, {"loss": torch.tensor(1.0)}, None, 21)  # type: ignore[arg-type]


@pytest.mark.slow
def test_command__two_processes_find_what_one_does(tiny_run: list[str], tmp_path: Path) -> None:
    words = [*tiny_run, "training.find_lr=true", "adapter.dropout=0", "optim.eps=1e-3"]
    two = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=4"]
    for name, options in (("one", []), ("two", two)):
        command = [sys.executable, "-m", "mwa_lightning.cli.train", *words, *options, f"run_dir={tmp_path / name}"]
        subprocess.run(command, check=True, timeout=300, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
    one, two_rows = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert [row["loss"] for row in two_rows[:60]] == pytest.approx([row["loss"] for row in one[:60]], rel=1e-4)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["lr_find.csv", "lr_find.png"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("adapter=none", "adapter=none trains nothing"),
        ("+trainer.fast_dev_run=true", "training.find_lr=true: does not go with trainer.fast_dev_run"),
        ("trainer=fsdp trainer.accelerator=cpu", "training.find_lr=true: cannot be had with trainer=fsdp"),
        ("resume=last.ckpt", "training.find_lr=true: is of a run from its beginning: leave resume=.*last.ckpt out"),
        ("-m seed=1,2", "training.find_lr=true: is a test of one run, which then does not train"),
        ("training.find_lr=yes", "training.find_lr=yes: want true or false"),
    ],
)
def test_refused(words: str, said: str, tiny_run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*tiny_run, "training.find_lr=true", *words.split()]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert error.startswith("mwa-train: error: ")
    assert re.search(said, error)


def test_refused__in_a_search(tiny_run: list[str], elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    assert tune.main([*tiny_run, "training.find_lr=true", "optim.lr=1e-3,1e-2"]) == 2
    assert "is a test of one run" in capsys.readouterr().err
    assert list(elsewhere.iterdir()) == []
