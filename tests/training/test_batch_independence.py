"""Metrics and predictions do not depend on how many samples are encoded at once, which also decides the padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mwa_lightning.cli.config.composing import compose_command
from mwa_lightning.training.evaluate import evaluate

FAMILIES = {
    "multiway": ["backbone=beit3_tiny"],
    "dual": ["backbone=clip_tiny"],
    "siglip": ["backbone=siglip2_tiny"],
    "fusion": ["backbone=albef_tiny", "task.rerank=4"],
}


def measured(
    words: Sequence[str], root: Path, run: Path, batch: int
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    config = compose_command(
        "evaluate",
        [*words, "adapter=none", "backbone.checkpoint=random", "data=karpathy", f"data.root={root}",
         "data.num_workers=0", "save_predictions=true", f"data.eval_batch_size={batch}", f"run_dir={run}"],
    )  # fmt: skip
    return evaluate(config), load_file(run / "predictions.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation__any_batch_size_gives_the_same(family: str, data_root: Path, tmp_path: Path) -> None:
    figures, predictions = measured(FAMILIES[family], data_root, tmp_path / "all", 64)
    for batch in (1, 5):
        other, others = measured(FAMILIES[family], data_root, tmp_path / str(batch), batch)
        assert other == figures
        assert others.keys() == predictions.keys()
        for name, tensor in predictions.items():
            torch.testing.assert_close(others[name], tensor, rtol=1e-5, atol=1e-5)
