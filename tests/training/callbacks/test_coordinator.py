"""What is logged, drawn and saved of the coordinators, of a small module that calls two of them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mwa_lightning.adapters.experts import EXPERTS, CoordinatedExperts
from mwa_lightning.backbones.sites import SlotContext
from mwa_lightning.errors import ConfigError
from mwa_lightning.training.callbacks.coordinator import CoordinatorFigures, CoordinatorWeights, check_saving
from mwa_lightning.training.fit import fit
from mwa_lightning.training.loggers.making import TableLogger

WIDTH, TOKENS = 4, 5
NAMES = ("fusion_10_ffn", "fusion_2_cross_attn", "fusion_10_cross_attn")


class Batch(NamedTuple):
    tokens: Tensor
    mask: Tensor


class Probe(pl.LightningModule):
    """Runs `side` passes a sample side by side, `times` one after the other."""

    def __init__(self, *, fuses: bool = True, side: int = 1, times: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fuses, self.side, self.times = fuses, side, times
        experts = {name: CoordinatedExperts(width=WIDTH, mid_dim=2, temperature=1.0) for name in NAMES}
        self.model = nn.Module()
        self.model.adapter = nn.Module()
        self.model.adapter.coordinated = nn.ModuleDict(experts if fuses else {})
        self.other = nn.Linear(WIDTH, 1)

    def run_all(self, batch: Batch) -> Tensor:
        tokens, mask = (part.repeat_interleave(self.side, dim=0) for part in batch)
        outputs = [self.other(tokens)]
        for _ in range(self.times):
            context = SlotContext("fusion", mask, None)
            outputs += [experts(tokens, tokens, context) for experts in self.model.adapter.coordinated.values()]
        return sum(output.square().mean() for output in outputs)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.run_all(batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.run_all(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.run_all(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches() -> list[Batch]:
    """Of 3 and 2 samples, with 5, 3, 1 and 2, 5 real tokens."""
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(torch.randn(len(n), TOKENS, WIDTH, generator=generator), torch.arange(TOKENS) < torch.tensor(n)[:, None])
        for n in ([5, 3, 1], [2, 5])
    ]


def loader() -> DataLoader:
    return DataLoader(batches(), batch_size=None)


def trainer(folder: Path, callback: pl.Callback, logger: TableLogger | None = None) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=2, logger=logger or False, callbacks=[callback],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        log_every_n_steps=1, default_root_dir=folder,
    )  # fmt: skip


def expected_figures(probe: Probe, name: str) -> list[float]:
    """Means of the weights, and of their entropy, over the real tokens."""
    with torch.no_grad():
        weights = [probe.model.adapter.coordinated[name].weigh(batch.tokens)[batch.mask] for batch in batches()]
    rows = torch.cat(weights).double()
    assert len(rows) == 16
    return [*rows.mean(dim=0).tolist(), -(rows * rows.log()).sum(dim=-1).mean().item()]


def test_figures__means_and_entropy_once_a_validation_and_a_picture_at_the_end(tmp_path: Path) -> None:
    probe, picture = Probe(times=2), tmp_path / "coordinator.png"
    table = TableLogger(path=tmp_path / "metrics.csv")
    trainer(tmp_path, CoordinatorFigures(picture=picture), table).fit(probe, loader(), loader())
    with table.path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["name"].startswith("coordinator/")]
    assert [row["epoch"] for row in rows] == ["0"] * 12 + ["1"] * 12
    assert [row["step"] for row in rows] == ["1"] * 12 + ["3"] * 12
    last = {row["name"].removeprefix("coordinator/"): float(row["value"]) for row in rows[12:]}
    for name, short in zip(NAMES, ("ffn_10", "cross_attn_2", "cross_attn_10"), strict=True):
        got = [last[f"{short}/{figure}"] for figure in (*EXPERTS, "entropy")]
        assert got == pytest.approx(expected_figures(probe, name), rel=1e-5)
        assert 0.5 < got[3] < math.log(3)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert all(experts.record is None for experts in probe.model.adapter.coordinated.values())


def test_figures__without_coordinated_experts_leave_nothing(tmp_path: Path) -> None:
    table = TableLogger(path=tmp_path / "metrics.csv")
    figures = CoordinatorFigures(picture=tmp_path / "coordinator.png")
    trainer(tmp_path, figures, table).fit(Probe(fuses=False), loader(), loader())
    assert not (tmp_path / "coordinator.png").exists()
    assert not table.path.exists() or "coordinator" not in table.path.read_text()


@pytest.mark.parametrize(("side", "times"), [(1, 1), (2, 1), (1, 2)])
def test_weights__every_real_token_with_its_sample_position_and_run(tmp_path: Path, side: int, times: int) -> None:
    probe, path = Probe(side=side, times=times), tmp_path / "coordinator.safetensors"
    trainer(tmp_path, CoordinatorWeights(path)).test(probe, loader(), verbose=False)
    saved = load_file(path)
    kinds = ("weights", "sample", "position", "run")
    shorts = ("ffn_10", "cross_attn_2", "cross_attn_10")
    assert saved.keys() == {f"{short}.{kind}" for short in shorts for kind in kinds}
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["experts"]) == list(EXPERTS)
    weights, sample, position, run = (saved[f"cross_attn_2.{kind}"] for kind in kinds)
    assert len(weights) == 16 * side * times
    lengths = dict(enumerate([5, 3, 1, 2, 5]))
    wanted = {(s, p, r) for s, length in lengths.items() for p in range(length) for r in range(side * times)}
    assert set(zip(sample.tolist(), position.tolist(), run.tolist(), strict=True)) == wanted
    with torch.no_grad():
        every = [probe.model.adapter.coordinated["fusion_2_cross_attn"].weigh(batch.tokens) for batch in batches()]
    torch.testing.assert_close(weights, torch.cat(every)[sample, position])


@pytest.mark.parametrize(
    ("fuses", "devices", "message"),
    [
        (False, 1, "this model has no coordinated experts for this task"),
        (True, 2, "needs all samples in one process"),
        (True, 1, None),
    ],
)
def test_check_saving__refuses_what_cannot_be_saved(fuses: bool, devices: int, message: str | None) -> None:
    trainer = {"accelerator": "cpu", "devices": devices, "num_nodes": 1}
    config = OmegaConf.create({"save_coordinator": True, "trainer": trainer})
    adapter = Probe(fuses=fuses).model.adapter
    if message is None:
        check_saving(config, adapter)
        return
    with pytest.raises(ConfigError, match=f"save_coordinator=true: {message}"):
        check_saving(config, adapter)
    check_saving(OmegaConf.merge(config, {"save_coordinator": False}), adapter)


def test_fit__modex_on_separate_streams_has_no_coordinator_to_show(
    make_config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="save_coordinator=true: this model has no coordinated experts"):
        fit(make_config("adapter=modex", "save_coordinator=true"))
    assert not (tmp_path / "run").exists()
    fit(make_config("adapter=modex", "trainer.max_epochs=1"))
    assert not (tmp_path / "run" / "coordinator.png").exists()
    assert "coordinator" not in (tmp_path / "run" / "metrics.csv").read_text()
    trained = load_file(tmp_path / "run" / "adapter.safetensors")
    assert {name.split(".")[0] for name in trained} == {"backbone", "adapter", "heads"}
    assert all("norm" in name for name in trained if name.startswith("backbone."))
