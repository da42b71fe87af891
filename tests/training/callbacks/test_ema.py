"""The moving average against its formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file

from mwa_lightning.adapters.files.adapter_file import trained_state
from mwa_lightning.training.callbacks.ema import WeightAverage
from mwa_lightning.training.fit import fit

MakeConfig = Callable[..., DictConfig]


def test_average__follows_the_formula_and_is_what_is_saved(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    start, follow = WeightAverage.on_train_start, WeightAverage.on_train_batch_end

    def record(original: Callable[..., None]) -> Callable[..., None]:
        def wrapped(self: WeightAverage, trainer: object, module: torch.nn.Module, *rest: object) -> None:
            original(self, trainer, module, *rest)
            seen.append({n: t.double() for n, t in trained_state(module.get_submodule("model")).items()})

        return wrapped

    monkeypatch.setattr(WeightAverage, "on_train_start", record(start))
    monkeypatch.setattr(WeightAverage, "on_train_batch_end", record(follow))
    fit(make_config("training.ema_decay=0.7", "trainer.max_epochs=1"))
    expected = seen[0]
    for weights in seen[1:]:
        expected = {name: 0.7 * expected[name] + 0.3 * weights[name] for name in expected}
    saved = load_file(tmp_path / "run" / "adapter.safetensors")
    assert len(seen) == 4
    for name, tensor in expected.items():
        torch.testing.assert_close(saved[name].double(), tensor, rtol=1e-5, atol=1e-7)
        if name.endswith("up.weight"):
            assert not torch.equal(saved[name].double(), seen[-1][name])
