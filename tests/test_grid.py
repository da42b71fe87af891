"""Every adapter method on every family of backbones for every task, found by discovery: it trains and comes back.

What makes no sense is refused in one line; the table in the docs shows both.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from mwa_lightning.adapters.files.adapter_file import load_adapter, save_adapter, trained_state
from mwa_lightning.cli.config.groups import group_options
from mwa_lightning.data.samples.records import TrainBatch
from mwa_lightning.data.samples.statements import StatementBatch
from mwa_lightning.errors import ConfigError
from mwa_lightning.tasks.heads import FusionRetrievalHeads
from mwa_lightning.tasks.model import AdaptedModel
from mwa_lightning.training.assembly.build import adapter_metadata, attach, build_backbone, build_tokenizer
from mwa_lightning.training.assembly.setup import make_task
from scripts.adapter_grid import BACKBONES, CELLS, METHODS, PAGE, TASKS, Cell, build, composed, page, refusal

TEXTS = ["A red circle above a blue ring.", "Two stars.", "There is a green cross left of a pink square.", "A ring."]
RELEASED = "modex adapter.variant=released"


def expected_refusal(cell: Cell) -> str | None:
    if cell.method == "none":
        return "adapter=none trains nothing"
    if cell.method == RELEASED and not cell.backbone.startswith(("albef", "blip")):
        return "the released code has no arrangement for this backbone, which has no cross-attention"
    return None


TRAINED = [cell for cell in CELLS if expected_refusal(cell) is None]
REFUSED = [cell for cell in CELLS if expected_refusal(cell) is not None]


def make_batch(cell: Cell, config: DictConfig) -> Any:
    ids, mask = build_tokenizer(config)(TEXTS)
    size = config.backbone.image_size
    generator = torch.Generator().manual_seed(0)
    shape = (len(TEXTS), cell.images, 3, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    names = [str(number) for number in range(len(TEXTS))]
    if cell.task == "retrieval":
        return TrainBatch(images[:, 0], ids, mask, torch.arange(len(TEXTS)), names)
    return StatementBatch(images, ids, mask, torch.tensor([0, 1, 1, 0]), torch.arange(len(TEXTS)), names)


@torch.no_grad()
def outputs(model: AdaptedModel, batch: Any) -> dict[str, Tensor]:
    model.eval()
    if isinstance(batch, StatementBatch):
        return {"logits": model(batch.images, batch.ids, batch.mask)}
    found = {"image": model.encode_image(batch.images), "text": model.encode_text(batch.ids, batch.mask)}
    if isinstance(model.heads, FusionRetrievalHeads):
        seen = model.backbone.encode_image(batch.images)
        found["match"] = model.heads.match(model.backbone.fuse([seen], batch.ids, batch.mask))
    return found


@cache
def frozen_outputs(backbone: str, task: str) -> dict[str, Tensor]:
    """Of the backbone as it is, without an adapter."""
    cell = Cell("none", backbone, task)
    config = composed(cell)
    return outputs(attach(config, *build_backbone(config)), make_batch(cell, config))


def name_of(cell: Cell) -> str:
    return "-".join(cell).replace(" adapter.variant=", "_")


def test_discovery__finds_every_choice() -> None:
    assert {method.split()[0] for method in METHODS} == set(group_options("adapter"))
    # SigLIP (1) is SigLIP 2 with another vocabulary.
    families = {name.split("_")[0].replace("siglip2", "siglip") for name in group_options("backbone")}
    assert (
        {name.removesuffix("_tiny").replace("siglip2", "siglip") for name in BACKBONES}
        == families
        >= {"beit3", "clip", "siglip", "blip", "albef"}
    )
    assert set(TASKS) == set(group_options("task")) == {"retrieval", "reasoning", "entailment"}
    assert len(TRAINED) + len(REFUSED) == len(METHODS) * len(families) * len(TASKS)


@pytest.mark.parametrize("cell", TRAINED, ids=name_of)
def test_grid__trains_what_it_may_and_comes_back(cell: Cell, tmp_path: Path) -> None:
    config = composed(cell)
    model, batch = build(config), make_batch(cell, config)
    frozen = frozen_outputs(cell.backbone, cell.task)
    before = outputs(model, batch)
    # The released arrangement alone does not begin as the identity.
    same = all(torch.equal(before[name], frozen[name]) for name in frozen)
    assert same == (cell.method != RELEASED)

    values = {name: value.detach().clone() for name, value in model.named_parameters()}
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    unused = set(model.adapter.declared_unused)
    module = make_task(config, model)
    model.train()
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        module.model_step(batch).backward()
        bare = {name for name, value in model.named_parameters() if value.requires_grad and value.grad is None}
        assert bare <= unused
        optimizer.step()

    after = outputs(model, batch)
    for name, expected in frozen.items():
        assert after[name].isfinite().all(), name
        assert (after[name] - expected).abs().max() > 1e-3, name
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, values[name])}
    assert changed <= trained
    # Softmax does not see what is added to all of its logits alike: a bias of the keys may get a gradient of zero.
    assert {name for name in trained - changed if not (".key." in name and name.endswith(".bias"))} <= unused

    path = tmp_path / "adapter.safetensors"
    save_adapter(path, trained_state(model), metadata=adapter_metadata(config, model))
    again = build(config)
    load_adapter(path, again, fingerprint=model.backbone.fingerprint)
    for name, expected in outputs(again, batch).items():
        assert torch.equal(after[name], expected), name


@pytest.mark.parametrize("cell", REFUSED, ids=name_of)
def test_grid__what_makes_no_sense_is_refused_in_one_line(cell: Cell) -> None:
    line, wanted = refusal(cell), expected_refusal(cell)
    assert line is not None
    assert wanted is not None
    assert wanted in line
    assert "\n" not in line


@pytest.mark.parametrize("backbone", ["albef_tiny", "blip_tiny"])
@pytest.mark.parametrize("task", TASKS)
def test_grid__a_form_for_another_number_of_images_is_refused(backbone: str, task: str) -> None:
    config = composed(Cell("modex", backbone, task))
    config.backbone.pair = not config.backbone.pair
    fit = "true" if task == "reasoning" else "false"
    with pytest.raises(ConfigError, match=rf"set backbone\.pair={fit}") as caught:
        build(config)
    assert "\n" not in str(caught.value)


def test_table__in_the_docs_is_what_the_code_does() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(PAGE.read_text(encoding="utf-8")), (
        "run python scripts/adapter_grid.py"
    )
