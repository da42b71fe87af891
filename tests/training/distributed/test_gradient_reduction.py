"""Gradients of several processes are added in one order; run as a script, this file is one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mwa_lightning.training.distributed.gradient_reduction import mean_in_order_of_ranks
from tests.ranks import run_ranks

SIZES = (7, 301, 64)


class Step(nn.Module):
    """A loss whose gradients are the numbers that it is given; DDP lays the first parameter out first, then last."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(size) for size in SIZES)

    def forward(self, gradients: list[Tensor]) -> Tensor:
        losses = [(weight * gradient).sum() for weight, gradient in zip(self.weights, gradients, strict=True)]
        return losses[1] + losses[2] + losses[0]


def of_rank(rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(size, generator=generator) for size in SIZES]


def test_mean_in_order_of_ranks(tmp_path: Path) -> None:
    """To the last bit, in the buckets of the first step and in those that DDP makes of it."""
    for found in run_ranks(__file__, 3, tmp_path):
        assert found["ours"] == [True, True]
        assert found["gloo"] == [False, False]  # or this test would show nothing


def run_rank(rank: int, processes: int, folder: Path) -> None:
    """For each way to add and each of two steps: whether the gradients are those that are added rank by rank."""
    file = f"file://{folder / 'ranks'}"
    distributed.init_process_group("gloo", init_method=file, rank=rank, world_size=processes)
    wanted = []
    for parts in zip(*(of_rank(other) for other in range(processes)), strict=True):
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        wanted.append(total / processes)
    found: dict[str, list[bool]] = {}
    for name in ("ours", "gloo"):
        step = DistributedDataParallel(Step())
        if name == "ours":
            step.register_comm_hook(None, mean_in_order_of_ranks)
        found[name] = []
        for _ in range(2):
            step.zero_grad()
            step(of_rank(rank)).backward()
            gradients = [weight.grad for weight in step.module.weights]
            found[name].append(all(map(torch.equal, gradients, wanted)))
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
