"""Wrong partners from all processes, or from one's own; run as a script, this file is one of two processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.data.samples.records import TrainBatch
from mwa_lightning.tasks.heads import FusionRetrievalHeads
from mwa_lightning.tasks.losses.matching import Pairs, Similarity, gather_pairs, matching_loss
from mwa_lightning.tasks.model import RetrievalModel, trained_parameters
from mwa_lightning.tasks.retrieval import RetrievalTask
from tests.ranks import run_ranks
from tests.tasks.fusion_models import FAMILIES, make_batch, make_model

# Five pairs, one to four of the first process; the texts of a process are padded to its own longest.
SHARES = [(2, 3), (0, 5), (4, 1)]


def make_trained(family: str) -> RetrievalModel:
    model = make_model(FAMILIES[family])
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            if parameter.ndim:
                parameter.normal_(std=0.3)
    return model


def part(batch: TrainBatch, rows: slice) -> TrainBatch:
    mask = batch.mask[rows]
    longest = int(mask.sum(dim=1).max()) if len(mask) else 2
    return TrainBatch(
        batch.images[rows], batch.ids[rows, :longest], mask[:, :longest], batch.image_ids[rows], batch.sample_ids[rows]
    )


def certain(partners: Sequence[int]) -> Tensor:
    """Scores with which the partner of each row is as good as certain."""
    return torch.zeros(5, 5).scatter(1, torch.tensor(partners)[:, None], 90.0)


# Of image i the wrong text, of text i the wrong image; most are of the other process.
SIMILARITY = Similarity(certain([4, 3, 0, 1, 2]), certain([3, 4, 1, 0, 2]))


def loss_and_gradients(model: RetrievalModel, batch: TrainBatch, rows: slice, *, gather: bool) -> dict[str, Any]:
    model.zero_grad()
    backbone, heads = model.backbone, model.heads
    assert isinstance(backbone, FusionEncoder)
    assert isinstance(heads, FusionRetrievalHeads)
    texts = backbone.encode_text(batch.ids, batch.mask) if backbone.fusion_layers else None
    own = Pairs(backbone.encode_image(batch.images), batch.ids, batch.mask, batch.image_ids, texts)
    candidates = gather_pairs(own) if gather else own
    scores = Similarity(*(side[rows] for side in SIMILARITY))
    loss = matching_loss(backbone, heads, own=own, candidates=candidates, similarity=scores)
    loss.backward()
    found = {
        name: parameter.grad for name, parameter in trained_parameters(model).items() if parameter.grad is not None
    }
    return {"loss": loss.item(), "gradients": found}


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    batch = make_batch(1, 2, 3, 4, 5)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    rows: list[dict[str, Any]] = []
    for family in FAMILIES:
        model = make_trained(family)
        for share in SHARES:
            own = slice(0, share[0]) if rank == 0 else slice(share[0], 5)
            found = loss_and_gradients(model, part(batch, own), own, gather=True)
            for parameter in trained_parameters(model).values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                distributed.all_reduce(parameter.grad)
            gradients = {name: (parameter.grad / 2).tolist() for name, parameter in trained_parameters(model).items()}
            rows.append({"loss": found["loss"], "gradients": gradients})
    # All pairs of a process are of one image: wrong partners are with the other, or nowhere.
    task = RetrievalTask(model=make_trained("blip"))
    alone = part(make_batch(7, 7, 8, 8), slice(0, 2) if rank == 0 else slice(2, 4))
    losses = {}
    for choice in ("own", "all"):
        torch.manual_seed(rank)
        losses[choice] = RetrievalTask(model=task.model, matching_negatives=choice).model_step(alone).item()
    (folder / f"{rank}.json").write_text(json.dumps({"rows": rows, "losses": losses}))
    distributed.destroy_process_group()


def test_matching_loss__of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    results = run_ranks(__file__, 2, tmp_path)

    batch = make_batch(1, 2, 3, 4, 5)
    places = [(family, share) for family in FAMILIES for share in SHARES]
    for (family, share), first, second in zip(places, results[0]["rows"], results[1]["rows"], strict=True):
        model = make_trained(family)
        expected = loss_and_gradients(model, batch, slice(None), gather=False)
        assert (first["loss"] + second["loss"]) / 2 == pytest.approx(expected["loss"], rel=1e-6), (family, share)
        assert first["gradients"] == second["gradients"]
        for name, gradient in expected["gradients"].items():
            difference = (torch.tensor(first["gradients"][name]) - gradient).norm()
            assert difference <= 1e-5 * gradient.norm(), (family, share, name)
    # Three times as many pairs to tell apart, two of three of them wrong.
    for result in results:
        assert result["losses"]["own"] != pytest.approx(result["losses"]["all"], rel=1e-3)


if __name__ == "__main__":
    process(int(sys.argv[1]), Path(sys.argv[3]))
