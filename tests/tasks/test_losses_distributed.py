"""Several processes give the gradients and figures of one; run as a script, this file is one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from mwa_lightning.adapters.mwa import MultiWayAdapter
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.metrics.recall import RetrievalRecall
from mwa_lightning.tasks.heads import RetrievalHeads
from mwa_lightning.tasks.losses.functions import (
    contrastive_loss,
    gather_rows,
    momentum_contrastive_loss,
    sigmoid_loss,
)
from mwa_lightning.tasks.model import RetrievalModel, trained_parameters
from tests.ranks import run_ranks

# How the seven pairs of the global batch fall to the processes: an uneven last batch, a process without any.
SHARES = {2: [[4, 3], [0, 7]], 3: [[3, 3, 1], [4, 0, 3]]}
IMAGE_IDS = [3, 9, 3, 4, 9, 5, 3]


class Step(nn.Module):
    """What DDP wraps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        backbone = Multiway(
            name="test",
            width=16,
            depth=2,
            heads=2,
            ffn_width=32,
            patch_size=8,
            image_size=16,
            vocabulary_size=40,
        )
        adapter = MultiWayAdapter(mid_dim=4, enhancer_dim=6, dropout=0.0)
        self.model = RetrievalModel(backbone=backbone, adapter=adapter, heads=RetrievalHeads(width=16))
        with torch.no_grad():
            for parameter in trained_parameters(self.model).values():
                if parameter.ndim:
                    parameter.normal_(std=0.3)
        self.bias = nn.Parameter(torch.tensor(-1.5))

    def forward(
        self,
        images: Tensor,
        ids: Tensor,
        image_ids: Tensor,
        mask_same_image: bool,
        shares: tuple[int, ...] | None = None,
    ) -> Tensor:
        """All losses: their sum has the gradients of one wrong where they are."""
        embedded = (
            self.model.encode_image(images),
            self.model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool)),
        )
        options = {"logit_scale": self.model.heads.logit_scale, "image_ids": image_ids, "shares": shares}
        softmax = contrastive_loss(*embedded, **options, mask_same_image=mask_same_image)
        sigmoid = sigmoid_loss(*embedded, **options, logit_bias=self.bias, mask_same_image=mask_same_image)
        # Whatever the slow model says, as long as it is a function of the pair.
        slow = tuple(functional.normalize(rows.detach().roll(1, dims=1), dim=1) for rows in embedded)
        kept = functional.normalize(torch.arange(80.0).sin().reshape(5, 16), dim=1)
        queue = (kept, kept.flip(0), torch.tensor([9, 1, 2, 3, 3]))
        momentum = momentum_contrastive_loss(*embedded, slow=slow, queue=queue, **options, distillation=0.4)
        return softmax + 0.5 * sigmoid + 0.3 * momentum


def global_batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(7, 3, 16, 16, generator=generator)
    return images, torch.randint(4, 40, (7, 6), generator=generator), torch.tensor(IMAGE_IDS)


def gradients(
    step: nn.Module, batch: tuple[Tensor, Tensor, Tensor], *, mask: bool, shares: tuple[int, ...] | None = None
) -> tuple[float, dict[str, Tensor]]:
    step.zero_grad()
    loss = step(*batch, mask, shares)
    loss.backward()
    inner = step.module if isinstance(step, DistributedDataParallel) else step
    found = trained_parameters(inner).items()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in found if parameter.grad is not None}


def embedded_split() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(30, 8, generator=generator)
    owner = torch.arange(30).repeat_interleave(5)
    return images, images[owner] + 1.5 * torch.randn(150, 8, generator=generator), owner


def recall_of_shards(rank: int, processes: int) -> dict[str, float]:
    """Process r takes every r-th of three (of two processes, the second has no images), with overlaps."""
    images, texts, owner = embedded_split()
    metric = RetrievalRecall()
    metric.update_images(torch.empty(0, 8), torch.arange(0))
    metric.update_texts(torch.empty(0, 8), torch.arange(0), torch.arange(0))
    if rank == 0:
        metric.update_images(images, torch.arange(30))
    rows = torch.cat([torch.arange(rank, 150, processes), torch.tensor([0, 7])])
    for part in rows.split(11):
        metric.update_texts(texts[part], part, owner[part])
    return {name: value.item() for name, value in metric.compute().items()}


def process(rank: int, processes: int, folder: Path) -> None:
    torch.set_num_threads(1)
    step = Step()
    references = {mask: gradients(step, global_batch(), mask=mask) for mask in (True, False)}
    address = f"file://{folder / 'meeting'}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=processes)
    wrapped = DistributedDataParallel(step)
    rows: list[dict[str, Any]] = []
    for share in SHARES[processes]:
        begin, end = sum(share[:rank]), sum(share[: rank + 1])
        images, ids, image_ids = global_batch()
        for mask, (reference_loss, reference) in references.items():
            own = (images[begin:end], ids[begin:end], image_ids[begin:end])
            # The processes know each other's shares, or ask for them.
            loss, found = gradients(wrapped, own, mask=mask, shares=tuple(share) if mask else None)
            errors = {name: ((found[name] - value).norm() / value.norm()).item() for name, value in reference.items()}
            row = {"loss": loss, "reference_loss": reference_loss, "errors": errors}
            norms = {name: value.norm().item() for name, value in reference.items()}
            rows.append(row | {"norms": norms, "names": sorted(found), "expected": sorted(trained_parameters(step))})
    with pytest.raises(ValueError, match=r"has 2 rows, shares are \[1"):
        gather_rows(torch.ones(2, 3), [1] * processes)
    recall = recall_of_shards(rank, processes)
    (folder / f"{rank}.json").write_text(json.dumps({"rows": rows, "recall": recall}))
    distributed.destroy_process_group()


@pytest.mark.parametrize("processes", [2, 3])
def test_pain_12__gradients_of_several_processes_are_those_of_one(processes: int, tmp_path: Path) -> None:
    results = run_ranks(__file__, processes, tmp_path)

    for rows in zip(*(result["rows"] for result in results), strict=True):
        assert sum(row["loss"] for row in rows) / processes == pytest.approx(rows[0]["reference_loss"], rel=1e-6)
        for row in rows:
            assert row["names"] == row["expected"]
            assert min(row["norms"].values()) > 1e-6
            assert max(row["errors"].values()) <= 1e-5, row["errors"]
    # The two forms of the loss differ, or the mask would not have been tested.
    assert results[0]["rows"][0]["reference_loss"] != pytest.approx(results[0]["rows"][1]["reference_loss"], rel=1e-3)

    images, texts, owner = embedded_split()
    metric = RetrievalRecall()
    metric.update_images(images, torch.arange(30))
    metric.update_texts(texts, torch.arange(150), owner)
    expected = {name: value.item() for name, value in metric.compute().items()}
    assert 5 < expected["t2i_r1"] < 95
    assert all(result["recall"] == expected for result in results)


if __name__ == "__main__":
    process(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
