"""Whether all processes of a run read the same files: each machine may have a copy of its own, and one may be old."""

from __future__ import annotations

import socket
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import distributed

from mwa_lightning.backbones.checkpoints import locate, weights_file
from mwa_lightning.data.base import SplitDataModule
from mwa_lightning.errors import DataError
from mwa_lightning.system.whole_files import file_sha256
from mwa_lightning.training.distributed.processes import gathered


def check_same_files(config: DictConfig, data: SplitDataModule[Any]) -> None:
    """Compare what the processes have read, where they have met by now: those of one machine read the same.

    Numbers of samples that differ have processes wait for each other for ever, and other captions or weights make
    figures of nothing. Pictures are not compared.

    Raises DataError, on all ranks, with the first file that a rank reads otherwise than rank 0.
    """
    if not distributed.is_initialized():
        return
    (first, wanted), *others = gathered((socket.gethostname(), _read(config, data)))
    for rank, (machine, found) in enumerate(others, start=1):
        for file in {**wanted, **found}:
            if found.get(file) != wanted.get(file):
                raise DataError(
                    f"{file} is not the same for all ranks: rank {rank} on {machine} has another than rank 0 on "
                    f"{first}; copy it to all machines anew"
                )


def _read(config: DictConfig, data: SplitDataModule[Any]) -> dict[str, str]:
    """The SHA-256 of the files of annotations, shards' indices, tokenizer, backbone and adapter, by their names."""
    assert data.ledger.storage is not None, "setup comes first"
    files = {str(path): path for path in data.ledger.storage.files}
    for key in ("backbone.tokenizer", "backbone.checkpoint", "adapter.checkpoint"):
        reference = OmegaConf.select(config, key)
        if reference is not None:
            weights = key == "backbone.checkpoint" and reference != "random"
            files[f"{key}={reference}"] = weights_file(reference) if weights else locate(reference)
    return {name: file_sha256(path) for name, path in files.items() if path.is_file()}
