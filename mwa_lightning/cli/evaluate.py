"""`mwa-eval`: evaluate a run, or a backbone, adapter and data set put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mwa_lightning.cli.command import Command, rank_of_process, run
from mwa_lightning.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mwa_lightning.cli.config.composing import Request

_USAGE = """
mwa-eval run=DIR [group=choice ...] [key=value ...]
mwa-eval backbone=... adapter=... data=... [key=value ...]
Evaluate image-text retrieval, or statements about images, on a split of a data set.

  mwa-eval run=logs/retrieval/scenes_mwa/2026-01-31_12-00-00
  mwa-eval run=DIR split=val save_predictions=true
  mwa-eval backbone=beit3_tiny adapter=none data=scenes          zero-shot
  mwa-eval backbone=beit3_base backbone.checkpoint=FILE backbone.tokenizer=FILE backbone.image_size=384
           adapter=none data=coco data.root=DIR expect=NAME      against published metrics
"""
_MAIN_KEYS = (
    "run",
    "expect",
    "run_dir",
    "split",
    "save_predictions",
    "save_coordinator",
    "backbone.checkpoint",
    "backbone.tokenizer",
    "backbone.image_size",
    "adapter.checkpoint",
    "data.root",
    "data.shards",
    "data.eval_batch_size",
    "data.num_workers",
    "trainer.precision",
    "trainer.threads",
    "debug",
)


# Groups that an evaluation makes nothing of: classes that they name in a run's configuration are not needed.
OF_TRAINING = ("callbacks", "logger")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    command = Command(
        name="mwa-eval",
        config_name="evaluate",
        compose=_compose,
        execute=_execute,
        usage=_USAGE,
        main_keys=_MAIN_KEYS,
        listens=True,
    )
    return run(command, argv)


def _compose(arguments: list[str]) -> DictConfig:
    from mwa_lightning.cli.adopting import adopt, recomposing
    from mwa_lightning.cli.config.composing import apply, compose_groups, read_request

    request = read_request(arguments, config_name="evaluate")
    alone = request.values.get("run") is None
    config = compose_groups("evaluate", request.choices, request.defaults) if alone else _of_run(request)
    config = adopt(config, request, recomposing("evaluate", request), evaluation=True)
    apply(config, request)
    return config


def _of_run(request: Request) -> DictConfig:
    """What the run's config.yaml has, but for groups that are chosen anew."""
    from mwa_lightning.cli.config.composing import compose_groups, load_saved
    from mwa_lightning.cli.config.groups import group_options, groups_of
    from mwa_lightning.cli.config.suggesting import path_meant
    from mwa_lightning.cli.config.trusted import check_saved

    if "experiment" in request.choices:
        raise ConfigError("experiment= does not go with run=, which has its own: override single keys or groups")
    directory = Path(str(request.values["run"])).expanduser().absolute()
    if not directory.is_dir():
        raise ConfigError(f"run={directory}: there is no such directory.{path_meant(directory)}")
    file = directory / "config.yaml"
    saved = load_saved(file)
    groups = [group for group in groups_of("evaluate") if group != "experiment"]
    unlike = [group for group in groups if not isinstance(saved.get(group), dict)]
    if unlike:
        raise ConfigError(f"{file} is not the configuration of a run: it has no {unlike[0]}")
    left = {"run", "run_dir", *OF_TRAINING, *request.choices}
    saved = {key: value for key, value in saved.items() if key not in left}
    check_saved(saved, origin=file, typed=request.values.keys() | request.added.keys())
    identities = {"backbone": "name", "task": "name", "data": "layout"}
    named = {group: saved[group].get(key) for group, key in identities.items() if group in saved}
    chosen: dict[str, str | None] = {group: name for group, name in named.items() if name in group_options(group)}
    config = compose_groups("evaluate", chosen | request.choices, request.defaults)
    for key, value in saved.items():
        if key in config and key != "hydra":
            config[key] = _with_newer_keys(config[key], value)
    config.trainer = {"threads": "auto", **config.trainer}  # of a version that had no such key
    _check_built_in(saved, request, origin=file)
    if request.values.get("data.root") is not None:
        config.data.shards = None  # those of the run would take its place
    if "adapter" in request.choices:
        return config
    weights = directory / "adapter.safetensors"
    if "adapter.checkpoint" not in request.values and not weights.is_file():
        raise CheckpointError(
            f"{weights} does not exist: the run has saved no adapter; give adapter.checkpoint=FILE or adapter=none"
        )
    config.adapter.checkpoint = str(weights)
    return config


def _with_newer_keys(default: Any, saved: Any) -> Any:
    """What a run's configuration has, and the defaults of keys that its version did not have yet."""
    from omegaconf import DictConfig, OmegaConf

    if isinstance(default, DictConfig) and isinstance(saved, dict):
        of_one_kind = default.get("_target_") is not None and default.get("_target_") == saved.get("_target_")
        # Merged as plain keys: those that there are no more must not make it fail here.
        return OmegaConf.merge(OmegaConf.to_container(default), saved) if of_one_kind else saved
    return saved


def _check_built_in(saved: Mapping[str, Any], request: Request, *, origin: Path) -> None:
    """Raise ConfigError if a data set would be made in a folder that only the run's configuration names."""
    from mwa_lightning.cli.config.consistency import BUILT_IN

    data = saved.get("data", {})
    root = data.get("root")
    if root is None or data.get("layout") not in BUILT_IN or "data.root" in request.values:
        return
    if not Path(str(root)).is_dir() and request.values.get("data.shards", data.get("shards")) is None:
        raise ConfigError(
            f"{origin}: its data.root={root} is not there, and is not made because a file names it; give "
            "data.root=DIR, or data.root=null for the cache"
        )


def _execute(config: DictConfig) -> None:
    from mwa_lightning.cli.config.consistency import check_adapted, check_data, check_model, check_precision, check_task

    check_model(config)
    check_task(config)
    check_data(config)
    check_precision(config)
    if config.expect is not None:
        from mwa_lightning.report.published_results import check_name
        from mwa_lightning.tasks.rules import rules_of

        check_name(config.expect, task=config.task.name, gives=rules_of(config).published)

    check_adapted(config)

    from mwa_lightning.system.signals import Breaking, Signals, listening

    # In one of several processes it is the first that ends all, or they agree.
    signals = Signals() if rank_of_process() else Breaking()
    with listening(config.training.requeue_signal, signals):
        from mwa_lightning.training.evaluate import evaluate

        evaluate(config, signals)
