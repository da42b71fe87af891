"""Every adapter method on every family of backbones for every task: it trains what it may, and comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from mwa_lightning.adapters.files import load_adapter, save_adapter, trained_state
from mwa_lightning.cli.composing import apply, compose_groups, read_request
from mwa_lightning.cli.menu import group_options
from mwa_lightning.data.records import TrainBatch
from mwa_lightning.data.statements import StatementBatch
from mwa_lightning.tasks.heads import FusionRetrievalHeads
from mwa_lightning.tasks.model import AdaptedModel
from mwa_lightning.training.build import adapter_metadata, attach, build_backbone, build_tokenizer
from mwa_lightning.training.setup import make_task

BACKBONES = [name for name in group_options("backbone") if name.endswith("_tiny")]
METHODS = [name for name in group_options("adapter") if name != "none"]
IMAGES = {"retrieval": 1, "reasoning": 2, "entailment": 1}
TEXTS = ["A red circle above a blue ring.", "Two stars.", "There is a green cross left of a pink square.", "A ring."]


def composed(backbone: str, method: str, task: str) -> DictConfig:
    pair = "backbone.pair=true" if IMAGES[task] == 2 and backbone.startswith(("blip", "albef")) else None
    words = [f"backbone={backbone}", "backbone.checkpoint=random", f"adapter={method}", f"task={task}", pair]
    request = read_request([word for word in words if word], config_name="train")
    config = compose_groups("train", request.choices)
    apply(config, request)
    return config


def build(config: DictConfig) -> AdaptedModel:
    return attach(config, *build_backbone(config))


def make_batch(config: DictConfig) -> Any:
    ids, mask = build_tokenizer(config)(TEXTS)
    size = config.backbone.image_size
    generator = torch.Generator().manual_seed(0)
    shape = (len(TEXTS), IMAGES[config.task.name], 3, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    names = [str(number) for number in range(len(TEXTS))]
    if config.task.name == "retrieval":
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


@pytest.mark.parametrize("task", IMAGES)
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", METHODS)
def test_grid__trains_what_it_may_and_comes_back(method: str, backbone: str, task: str, tmp_path: Path) -> None:
    config = composed(backbone, method, task)
    model, batch = build(config), make_batch(config)
    before = outputs(model, batch)
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    module = make_task(config, model)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        module.model_step(batch).backward()
        bare = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
        assert set(bare) <= set(model.adapter.declared_unused)
        optimizer.step()

    after = outputs(model, batch)
    for name, expected in before.items():
        assert not torch.equal(after[name], expected), name
        assert after[name].isfinite().all(), name
    for name, value in model.named_parameters():
        if name in frozen:
            assert torch.equal(value, frozen[name]), name

    path = tmp_path / "adapter.safetensors"
    save_adapter(path, trained_state(model), metadata=adapter_metadata(config, model))
    again = build(config)
    load_adapter(path, again, fingerprint=model.backbone.fingerprint)
    for name, expected in outputs(again, batch).items():
        assert torch.equal(after[name], expected), name
