"""What the metrics of a run are of: data, weights, adapter and settings, by content, in `provenance.json`.

`metrics.json` has a number for each name; this file says, for each beginning of a name (`test`, `val`, `zero_shot`),
which data it was measured on and with what. A run that resumes, and one that is started again after its end, is held
against it: the data may have moved, but must be the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import mwa_lightning
from mwa_lightning.data.base import SplitDataModule
from mwa_lightning.errors import ConfigError
from mwa_lightning.system.code_version import commit
from mwa_lightning.system.plain_files import read_json
from mwa_lightning.system.whole_files import file_sha256
from mwa_lightning.tasks.model import AdaptedModel
from mwa_lightning.training.runs.run_directory import RunDirectory, result_settings, write_atomically

log = logging.getLogger(__name__)

Provenance = dict[str, Any]


def inputs_of(config: DictConfig, data: SplitDataModule[Any], model: AdaptedModel, splits: Iterable[str]) -> Provenance:
    """What a run works on: the identity of its splits, tokenizer and frozen weights, and of the adapter it starts from.

    `data` has to be set up for the splits.
    """
    checkpoint = config.adapter.get("checkpoint")
    names = list(dict.fromkeys(splits))
    return {
        "data": {name: data.identity(name) for name in names},
        "tokenizer_sha256": data.tokenizer_identity(names[0]),
        "backbone": {"name": str(config.backbone.name), "fingerprint": model.backbone.fingerprint},
        "adapter_sha256": None if checkpoint is None else _file_sha256(Path(checkpoint)),
        "settings_sha256": hashlib.sha256(repr(result_settings(config)).encode()).hexdigest(),
        "code": {"version": mwa_lightning.__version__, "commit": commit()},
    }


def of_metrics(inputs: Provenance, *, split: str, adapter: Path | None) -> Provenance:
    """What metrics of a split are of, where `adapter` was used, the file as it is now."""
    return {
        "data": {"split": split, **inputs["data"][split]},
        **{key: inputs[key] for key in ("tokenizer_sha256", "backbone", "settings_sha256", "code")},
        "adapter_sha256": None if adapter is None else _file_sha256(adapter),
    }


def read(run: RunDirectory) -> Provenance:
    """The provenance in a run directory, empty if there is none. Raises ConfigError if it is damaged."""
    if not run.provenance.is_file():
        return {}
    try:
        found = read_json(run.provenance)
        return {"inputs": dict(found["inputs"]), "metrics": {name: dict(of) for name, of in found["metrics"].items()}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(run) from error


def begin(run: RunDirectory, inputs: Provenance) -> None:
    """Hold what is worked on now against what the directory says of its earlier starts; note it where it says nothing.

    Raises ConfigError as `check_inputs`.
    """
    # An earlier start that has left neither, such as one that met a bad picture, has nothing to be mixed up with.
    begun = run.metrics.is_file() or any(run.checkpoints.glob("*.ckpt"))
    if begun:
        check_inputs(run, inputs)
        of = [
            metrics.get("adapter_sha256")
            for name, metrics in read(run).get("metrics", {}).items()
            if name != "zero_shot"
        ]
        if any(of) and run.adapter.is_file() and _file_sha256(run.adapter) not in of:
            log.warning(
                "%s is not the file that %s is of: it is measured now, and val/... stay those of the best epoch",
                run.adapter,
                run.metrics,
            )
    if not begun or not run.provenance.is_file():
        write(run, inputs, {})


def write(run: RunDirectory, inputs: Provenance, metrics: Mapping[str, Provenance]) -> None:
    """Write `provenance.json` whole."""
    if run.writes:
        content = {"inputs": inputs, "metrics": dict(metrics)}
        write_atomically(run.provenance, (json.dumps(content, indent=2) + "\n").encode())


def check_inputs(run: RunDirectory, inputs: Provenance, *, resumed: Path | None = None) -> None:
    """Compare what a run works on now with what it began with, or with what the run did whose file is `resumed`.

    Raises ConfigError, which says what differs and how to measure it on purpose. A run of a version that left no
    provenance is warned of.
    """
    earlier = read(run).get("inputs", {})
    if not earlier:
        log.warning(
            "%s has no %s: that data and weights are still the same is not known", run.path, run.provenance.name
        )
        return
    try:
        changed = _difference(earlier, inputs)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damaged(run) from error
    if changed and resumed is not None:
        raise ConfigError(
            f"resume={resumed}: its run was on {changed}; give it the same{_from_its_weights(run, changed)}"
        )
    if changed:
        measures = run.finished and " split (" in changed  # its adapter fits no other weights
        way = f"mwa-eval run={run.path} measures it on other data" if measures else "give it the same"
        raise ConfigError(f"run_dir={run.path}: holds a run on {changed}; {way}, or choose another run_dir")


def _from_its_weights(run: RunDirectory, changed: str) -> str:
    """The other way to go on from a run on other data, which needs its adapter and the same frozen weights."""
    fits = " split (" in changed and run.adapter.is_file()
    return f", or begin a run with adapter.checkpoint={run.adapter}, which takes its weights alone" if fits else ""


def _damaged(run: RunDirectory) -> ConfigError:
    return ConfigError(
        f"{run.provenance}: cannot be read, it is damaged; put a whole one back, or choose another run_dir"
    )


def _difference(earlier: Provenance, now: Provenance) -> str:
    """What differs, for people; empty if nothing does. Splits that one of the two lacks are not compared."""
    for split in [name for name in now["data"] if name in earlier["data"]]:
        before, after = earlier["data"][split], now["data"][split]
        if before != after:
            return f"another {split} split ({_counts(before)}), now it is {_counts(after)}"
    if earlier["tokenizer_sha256"] != now["tokenizer_sha256"] and earlier["data"].keys() == now["data"].keys():
        return "texts of another tokenizer (backbone.tokenizer)"
    before, after = (each["backbone"]["fingerprint"][:12] for each in (earlier, now))
    if before != after:
        return f"other frozen weights ({before}), now backbone.checkpoint has {after}"
    if earlier["adapter_sha256"] != now["adapter_sha256"]:
        return "another file of adapter.checkpoint"
    return ""


def _counts(identity: Mapping[str, Any]) -> str:
    return f"{identity['images']:,} images, {identity['samples']:,} texts, sha256 {identity['sha256'][:12]}"


def _file_sha256(path: Path) -> str | None:
    return file_sha256(path) if path.is_file() else None
