"""The example of a W&B sweep says what `mwa-train` understands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from mwa_lightning.cli.train import compose_checked
from mwa_lightning.data.scenes.writing import write_scenes
from tests.wandb_server import Server, serving

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


@pytest.mark.slow
def test_example__two_agents_at_once_carry_it_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """W&B's own agents, which a server of ours gives a trial each: runs with its values and ids."""
    root = tmp_path / "scenes"
    write_scenes(root, domain="target", seed=3, train=8, val=4, test=6)
    small = "trainer.max_steps=2 optim.warmup_epochs=0 data.batch_size=8 data.num_workers=0 training.zero_shot=false"
    env, _, *words, last = SWEEP["command"]
    program = [sys.executable, "-m", "mwa_lightning.cli.train"]
    config = SWEEP | {"command": [env, *program, *words, f"data.root={root}", *small.split(), last]}
    values = {"first": {"optim.lr": 1e-3, "adapter.mid_dim": 16}, "second": {"optim.lr": 2e-3, "adapter.mid_dim": 64}}
    trials = [
        {"type": "run", "program": "", "run_id": name, "args": {key: {"value": value} for key, value in each.items()}}
        for name, each in values.items()
    ]

    class WithSweep(Server):
        def answer(self, name: str) -> Any:
            if name in ("SweepWithRuns", "Sweep"):
                sweep = {"id": "s", "name": "sweep", "config": yaml.safe_dump(config), "runs": {"edges": []}}
                return {"project": {"sweep": sweep}}
            if name == "CreateAgent":
                return {"createAgent": {"agent": {"id": "a"}}}
            if name == "Heartbeat":
                commands = [trials.pop()] if trials else []
                return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(commands)}}
            return super().answer(name)

    with serving(WithSweep, monkeypatch, tmp_path / "home"):
        command = [sys.executable, "-m", "wandb", "agent", "--count", "1", "team/project/sweep"]
        agents = [
            subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for _ in range(2)
        ]
        said = [agent.communicate(timeout=250)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    runs = list(tmp_path.glob("logs/retrieval/scenes_mwa/*"))
    assert {(run / "wandb" / "id").read_text() for run in runs} == set(values)
    for run in runs:
        assert "test/mean_recall" in json.loads((run / "metrics.json").read_text())
        settings = yaml.safe_load((run / "config.yaml").read_text())
        given = values[(run / "wandb" / "id").read_text()]
        assert {"optim.lr": settings["optim"]["lr"], "adapter.mid_dim": settings["adapter"]["mid_dim"]} == given
