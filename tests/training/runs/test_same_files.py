"""Two processes with files of their own under the same names; run as a script, this file is one of them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from pathlib import Path

from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import distributed

from mwa_lightning.cli.train import compose_checked
from mwa_lightning.data.scenes.writing import write_scenes
from mwa_lightning.errors import DataError
from mwa_lightning.training.assembly.build import build_tokenizer
from mwa_lightning.training.assembly.setup import make_data
from mwa_lightning.training.distributed.cpus import settle_cpus
from mwa_lightning.training.distributed.processes import Processes
from mwa_lightning.training.runs.same_files import check_same_files
from tests.ranks import ROOT, run_ranks

ASSETS = ROOT / "mwa_lightning" / "assets"
# The words of a run, and the file that rank 1 has another one of.
CASES = {
    "all the same": ([], None),
    "other captions": ([], "scenes/dataset_scenes.json"),
    "other tokenizer": (["backbone.tokenizer=tokenizer.spm"], "backbone.tokenizer=tokenizer.spm"),
    "other weights": (["backbone.checkpoint=weights.safetensors"], "backbone.checkpoint=weights.safetensors"),
    "random weights": (["backbone.checkpoint=random"], None),
}


def test_check_same_files(tmp_path: Path) -> None:
    for rank in range(2):
        folder = tmp_path / str(rank)
        write_scenes(folder / "scenes", domain="target", seed=3, train=4, val=2, test=2)
        shutil.copy(ASSETS / "beit3_tiny.spm", folder / "tokenizer.spm")
        shutil.copy(ASSETS / "beit3_tiny.safetensors", folder / "weights.safetensors")
    for found in run_ranks(__file__, 2, tmp_path):
        for case, (_, file) in CASES.items():
            if file is None:
                assert found[case] is None
                continue
            here = socket.gethostname()
            assert found[case] == (
                f"{file} is not the same for all ranks: rank 1 on {here} has another than rank 0 on {here}; "
                "copy it to all machines anew"
            )


def alter(file: str) -> None:
    """Change one thing in a file, so that it can still be read."""
    path = Path(file.rpartition("=")[2])
    if path.suffix == ".json":
        path.write_text(path.read_text().replace("a ", "one ", 1))
    elif path.suffix == ".spm":
        path.write_bytes(path.read_bytes() + b"\x78\x00")  # a field that nobody knows, of protocol buffers
    else:
        tensors = load_file(path)
        tensors[max(tensors)].view(-1)[-1] += 1
        save_file(tensors, path)


def run_rank(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'ranks'}", rank=rank, world_size=2)
    os.chdir(folder / str(rank))
    found: dict[str, str | None] = {}
    for case, (words, file) in CASES.items():
        before = None if file is None or rank == 0 else Path(file.rpartition("=")[2]).read_bytes()
        if before is not None:
            alter(str(file))
        config = compose_checked(["trainer=cpu", "data.batch_size=4"])
        for word in ("data.root=scenes", *words):  # once composed: one name for all of them
            OmegaConf.update(config, *word.split("="))
        processes = Processes(config)
        config, _ = settle_cpus(config, processes)
        data = make_data(config, build_tokenizer(config), processes, stages=("fit", "test"))
        found[case] = None
        try:
            check_same_files(config, data)
        except DataError as error:
            found[case] = str(error)
        if before is not None:
            Path(str(file).rpartition("=")[2]).write_bytes(before)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[3]))
