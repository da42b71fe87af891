"""The example of a W&B sweep says what `mwa-train` understands."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from mwa_lightning.cli.train import compose_checked

SWEEP = yaml.safe_load((Path(__file__).parents[2] / "scripts" / "wandb_sweep.yaml").read_text())


@pytest.mark.parametrize("end", ["lowest", "highest"])
def test_example__its_words_make_a_run(end: str) -> None:
    pick = min if end == "lowest" else max
    values = {
        key: pick(parameter.get("values") or (parameter["min"], parameter["max"]))
        for key, parameter in SWEEP["parameters"].items()
    }
    words = create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    env, program, *fixed, last = SWEEP["command"]
    assert (env, program, last) == ("${env}", "mwa-train", "${args_no_hyphens}")
    config = compose_checked([*fixed, *words["args_no_hyphens"]])
    assert config.optim.lr == values["optim.lr"]
    assert config.adapter.mid_dim == values["adapter.mid_dim"]
    assert config.logger.name == "wandb"
    assert SWEEP["metric"] == {"name": config.training.monitor, "goal": "maximize"}
