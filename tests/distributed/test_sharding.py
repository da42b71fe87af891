"""A sharded model has the gradients, weights and figures of a whole one; run as a script, this file is one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mwa_lightning.data.samples.records import TrainBatch
from mwa_lightning.data.samples.statements import StatementBatch
from mwa_lightning.sharded_tensors import own_part, whole
from mwa_lightning.tasks.base import AdaptationTask
from mwa_lightning.tasks.heads import FusionRetrievalHeads
from mwa_lightning.tasks.model import AdaptedModel, parameter_figures, parameter_table, trained_parameters
from mwa_lightning.tasks.sharding import clip_gradients, shard
from mwa_lightning.training.assembly.build import build_tokenizer
from mwa_lightning.training.assembly.setup import make_task
from mwa_lightning.training.callbacks.guards import _not_finite_anywhere
from mwa_lightning.training.optim import make_optimizer
from scripts.adapter_grid import CELLS, Cell, build, composed, refusal
from tests.distributed.conftest import needs_fsdp
from tests.ranks import run_ranks

pytestmark = [needs_fsdp, pytest.mark.timeout(1800)]  # 27 combinations by three ways


# How the seven samples of the global batch fall to the processes: an uneven last batch, a process without any.
SHARES = {2: [[4, 3], [0, 7]], 3: [[3, 3, 1]]}
TEXTS = [
    "A red circle above a blue ring.",
    "Two stars.",
    "A pink square.",
    "A ring.",
    "A star.",
    "A green cross.",
    "Ah.",
]

SOME = [
    Cell("mwa adapter.dropout=0", "beit3_tiny", "retrieval"),
    Cell("mwa adapter.dropout=0 adapter.first_layer=3", "beit3_tiny", "retrieval"),
    Cell("modex", "beit3_tiny", "reasoning"),
    Cell("full", "beit3_tiny", "retrieval"),
    Cell("modex adapter.variant=released", "blip_tiny", "reasoning"),
    Cell("modex", "albef_tiny", "reasoning"),
]


class Step(nn.Module):
    """What DDP wraps."""

    def __init__(self, task: AdaptationTask[Any, Any]) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: Any) -> Tensor:
        """The loss."""
        return self.task.model.run(self.task.model_step, batch)


def make_batch(config: DictConfig, images_a_sample: int, share: list[int], rank: int) -> Any:
    """What a process has of the global batch."""
    ids, mask = build_tokenizer(config)(TEXTS)
    size = config.backbone.image_size
    generator = torch.Generator().manual_seed(0)
    shape = (len(TEXTS), images_a_sample, 3, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    own = slice(sum(share[:rank]), sum(share[: rank + 1]))
    names = [str(number) for number in range(len(TEXTS))][own]
    if config.task.name == "retrieval":
        image_ids = torch.tensor([3, 9, 3, 4, 9, 5, 6])
        return TrainBatch(images[own, 0], ids[own], mask[own], image_ids[own], names, tuple(share))
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    return StatementBatch(images[own], ids[own], mask[own], labels[own], torch.arange(len(TEXTS))[own], names)


def configuration(cell: Cell) -> DictConfig:
    """With pretrained weights where there are some: what random ones make of all inputs is alike but for rounding."""
    config = composed(cell)
    if cell.backbone == "beit3_tiny":
        config.backbone.checkpoint = "asset://beit3_tiny.safetensors"
    return config


def make_step(config: DictConfig) -> Step:
    """The model with all that is zero, or a thousandth, at the start drawn: so there is no gradient of nearly zero."""
    model = build(config)
    torch.manual_seed(1)
    with torch.no_grad():
        for part in (model.adapter, model.heads) if config.backbone.name == "beit3_tiny" else (model.adapter,):
            for parameter in trained_parameters(part).values():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return Step(make_task(config, model))


class Outcome(NamedTuple):
    """Gradients of each batch at the first weights, and the weights after a step with the last ones, clipped."""

    gradients: list[dict[str, Tensor]]
    weights: dict[str, Tensor]


def train(step: nn.Module, batches: list[Any], config: DictConfig) -> Outcome:
    """Go backwards with every batch, then step."""
    inner = cast("Step", step.module if isinstance(step, DistributedDataParallel) else step)
    model = inner.task.model
    optimizer = make_optimizer(
        model, lr=1e-3, **{key: config.optim[key] for key in ("weight_decay", "betas", "layer_decay")}, eps=1e-3
    )
    gradients = []
    for batch in batches:
        optimizer.zero_grad()
        torch.manual_seed(0)  # for the choice of wrong partners
        step(batch).backward()
        found = {name: parameter.grad for name, parameter in trained_parameters(model).items()}
        gradients.append({name: whole(grad).clone() for name, grad in found.items() if grad is not None})
    clip_gradients([p for group in optimizer.param_groups for p in group["params"]], limit=0.01)
    optimizer.step()
    weights = {name: whole(parameter).clone() for name, parameter in trained_parameters(model).items()}
    return Outcome(gradients, weights)


def watched_graphs(model: AdaptedModel) -> set[int]:
    """Fills itself with the layers of vision whose output is part of a graph."""
    graphs: set[int] = set()
    for layer, block in model.backbone.layers("vision"):

        def note(module: nn.Module, entered: Any, left: dict[str, Tensor], layer: int = layer) -> None:
            if "vision" in left and left["vision"].requires_grad:
                graphs.add(layer)

        block.register_forward_hook(note)
    return graphs


def gated_step(step: Step, batch: Any, config: DictConfig) -> dict[str, Tensor]:
    """The weights after a step that was called off."""
    model = step.task.model
    optimizer = make_optimizer(model, lr=0.1, weight_decay=0.1, betas=config.optim.betas, eps=1e-3, layer_decay=1.0)
    step(batch).backward()
    optimizer.gate = torch.ones(())
    optimizer.step()
    return {name: whole(parameter).clone() for name, parameter in trained_parameters(model).items()}


def differences(ours: Outcome, reference: Outcome) -> dict[str, float]:
    """Of the gradients of each batch, and of the weights."""
    pairs = zip(ours.gradients, reference.gradients, strict=True)
    found = {f"gradients {number}": difference(*pair) for number, pair in enumerate(pairs)}
    return found | {"weights": difference(ours.weights, reference.weights)}


def difference(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """The largest of all tensors, relative to its norm.

    Softmax does not see what is added to all of its logits alike: the gradient of a bias of the keys is rounding.
    """
    names = [name for name in reference if not (".key." in name and name.endswith(".bias"))]
    return max(((ours[name] - reference[name]).norm() / reference[name].norm()).item() for name in names)


def compare(cell: Cell, rank: int, reference: Outcome) -> dict[str, Any]:
    """What a process finds of one combination: two strategies beside each other, and beside one process alone."""
    processes = distributed.get_world_size()
    config = configuration(cell)
    batches = [make_batch(config, cell.images, share, rank) for share in SHARES[processes]]

    plain = make_step(config)
    declared = [f"task.model.{name}" for name in plain.task.model.adapter.declared_unused]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(plain, declared)
    by_ddp = train(DistributedDataParallel(plain), batches, config)

    sharded = make_step(config)
    model = sharded.task.model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    counts = (parameter_table(model), parameter_figures(model))
    shard(model, init_device_mesh("cpu", (processes,)))
    same_counts = counts == (parameter_table(model), parameter_figures(model))
    own = {name: own_part(parameter).numel() for name, parameter in model.named_parameters()}
    graphs = watched_graphs(model)
    by_fsdp = train(sharded, batches, config)
    gated = gated_step(sharded, batches[0], config)
    found = dict(model.named_parameters())
    random = isinstance(model.heads, FusionRetrievalHeads)  # each process draws wrong partners of its own
    everything = sum(tensor.numel() for tensor in before.values())
    return {
        "names": [sorted(gradients) for gradients in by_fsdp.gradients],
        "expected": sorted(set(trained_parameters(model)) - model.adapter.declared_unused),
        "to_ddp": differences(by_fsdp, by_ddp),
        "to_one": {} if random else differences(by_fsdp, reference),
        "least_norm": min(norm(gradients) for gradients in by_ddp.gradients),
        "frozen_same": all(
            torch.equal(whole(parameter), before[name])
            for name, parameter in found.items()
            if not parameter.requires_grad
        ),
        "same_counts": same_counts,
        "graphs": sorted(graphs),
        "gated": all(torch.equal(tensor, by_fsdp.weights[name]) for name, tensor in gated.items()),
        "whole": sorted(name for name, p in found.items() if not isinstance(p, DTensor)),
        "share": sum(own.values()) / everything,
        "share_of_frozen": share_of([name for name, p in found.items() if not p.requires_grad], own, before),
    }


def norm(gradients: dict[str, Tensor]) -> float:
    """The smallest of any tensor, but for the biases of the keys."""
    return min(
        gradient.norm().item()
        for name, gradient in gradients.items()
        if not (".key." in name and name.endswith(".bias"))
    )


def share_of(names: list[str], own: dict[str, int], before: dict[str, Tensor]) -> float | None:
    """How much of some tensors this process holds; None of a few numbers, which may lie in one process."""
    numbers = sum(before[name].numel() for name in names)
    return sum(own[name] for name in names) / numbers if numbers > 10_000 else None


def flags_where_one_part_is_bad(rank: int) -> list[bool]:
    """One process meets a number that is not finite, in its own part of a tensor; another tensor has no part here."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    from torch.distributed.tensor import Shard, distribute_tensor

    fine, bad, short = (distribute_tensor(torch.ones(size, 2), mesh, [Shard(0)]) for size in (4, 4, 1))
    if rank == 1:
        own_part(bad)[0, 0] = torch.inf
    flags: list[bool] = _not_finite_anywhere([fine, bad, short, torch.ones(3)]).tolist()
    return flags


def process(rank: int, processes: int, folder: Path) -> None:
    torch.set_num_threads(1)
    cells = [Cell(*words) for words in json.loads((folder / "cells.json").read_text())]
    references = {}
    for cell in cells:
        config = configuration(cell)
        batch = make_batch(config, cell.images, [len(TEXTS)], 0)
        references[cell] = train(make_step(config), [batch] * len(SHARES[processes]), config)
    address = f"file://{folder / 'meeting'}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=processes)
    found = [compare(cell, rank, references[cell]) for cell in cells]
    flags = flags_where_one_part_is_bad(rank)
    (folder / f"{rank}.json").write_text(json.dumps({"cells": found, "flags": flags}))
    distributed.destroy_process_group()


def in_processes(count: int, cells: list[Cell], folder: Path) -> list[Any]:
    """What each of some processes finds."""
    (folder / "cells.json").write_text(json.dumps(cells))
    return run_ranks(__file__, count, folder, seconds=1500)


def check(cell: Cell, found: dict[str, Any]) -> None:
    """Of one process."""
    # Nothing is left without a gradient by either strategy but what the method declares.
    assert all(names == found["expected"] for names in found["names"]), cell
    assert found["least_norm"] > 1e-7, cell
    # What a random BLIP makes of all inputs is nearly alike: gradients of contrast are what is left of large numbers.
    most = 1e-4 if (cell.backbone, cell.task) == ("blip_tiny", "retrieval") else 1e-5
    assert max(found["to_ddp"].values()) <= most, (cell, found["to_ddp"])
    assert max(found["to_one"].values(), default=0.0) <= 1e-5, (cell, found["to_one"])
    assert found["frozen_same"], cell
    assert found["same_counts"], cell
    assert found["gated"], cell
    below = next((int(word[-1]) for word in cell.method.split() if word.startswith("adapter.first_layer=")), 0)
    assert found["graphs"] == ([] if cell.method == "head_only" else list(range(below, 5))), cell
    # Scalars alone stay whole.
    assert all(name.rsplit(".", 1)[1] in ("logit_scale", "logit_bias") for name in found["whole"]), cell


def check_all(results: list[Any], cells: list[Cell], processes: int) -> None:
    assert len(results) == processes
    for result in results:
        for cell, found in zip(cells, result["cells"], strict=True):
            check(cell, found)
            assert found["share"] == pytest.approx(1 / processes, abs=0.02), cell
            if found["share_of_frozen"] is not None:
                assert found["share_of_frozen"] == pytest.approx(1 / processes, abs=0.03), cell
        assert result["flags"] == [False, True, False, False]


def test_pain_9__two_processes_share_the_weights_and_have_the_gradients_of_one(tmp_path: Path) -> None:
    check_all(in_processes(2, SOME, tmp_path), SOME, 2)


@pytest.mark.slow
def test_gradients__of_three_processes(tmp_path: Path) -> None:
    check_all(in_processes(3, SOME[2:5], tmp_path), SOME[2:5], 3)


@pytest.mark.slow
def test_pain_8__no_method_leaves_a_parameter_without_gradient(tmp_path: Path) -> None:
    """Every method that there is, on a backbone without cross-attention and on one with it, by DDP and FSDP."""
    walked = [cell for cell in CELLS if cell.backbone in ("beit3_tiny", "blip_tiny") and refusal(cell) is None]
    cells = [cell._replace(method="mwa adapter.dropout=0") if cell.method == "mwa" else cell for cell in walked]
    assert len(cells) >= 24
    check_all(in_processes(2, cells, tmp_path), cells, 2)


if __name__ == "__main__":
    process(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
