"""Parameter groups, AdamW and the schedule against plain formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.adapters.full import FullFineTuning
from mwa_lightning.adapters.modex import ModeX
from mwa_lightning.adapters.mwa import MultiWayAdapter
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.errors import ConfigError
from mwa_lightning.tasks.heads import RetrievalHeads
from mwa_lightning.tasks.model import RetrievalModel
from mwa_lightning.training.optim import (
    GatedAdamW,
    cosine_with_warmup,
    make_optimizer,
    make_scheduler,
    own_learning_rate,
    parameter_groups,
)

BETAS, EPS = (0.9, 0.95), 1e-8


def tiny_model(adapter: nn.Module) -> RetrievalModel:
    backbone = Multiway(
        name="tiny",
        width=8,
        depth=2,
        heads=2,
        ffn_width=16,
        patch_size=8,
        image_size=16,
        vocabulary_size=20,
        text_positions=10,
        max_text_length=8,
    )
    return RetrievalModel(backbone=backbone, adapter=adapter, heads=RetrievalHeads(width=8))


def settings_of(model: nn.Module, *, layer_decay: float) -> dict[str, tuple[float, float]]:
    return {
        name: (group.scale, group.weight_decay)
        for group in parameter_groups(model, weight_decay=0.05, layer_decay=layer_decay)
        for name in group.names
    }


def test_parameter_groups__full_fine_tuning_by_hand() -> None:
    found = settings_of(tiny_model(FullFineTuning()), layer_decay=0.5)
    expected = {
        "backbone.vision_embedding.projection.weight": (0.125, 0.05),
        "backbone.vision_embedding.projection.bias": (0.125, 0.0),
        "backbone.vision_embedding.cls_token": (0.125, 0.0),
        "backbone.vision_embedding.positions": (0.125, 0.0),
        "backbone.text_embedding.tokens.weight": (0.125, 0.05),
        "backbone.text_embedding.positions": (0.125, 0.0),
        "backbone.blocks.0.attention.query.vision.weight": (0.25, 0.05),
        "backbone.blocks.0.attention_norm.text.weight": (0.25, 0.0),
        "backbone.blocks.1.ffn.text.up.weight": (0.5, 0.05),
        "backbone.blocks.1.ffn.text.up.bias": (0.5, 0.0),
        "backbone.final_norm.vision.weight": (1.0, 0.0),
        "heads.vision.weight": (1.0, 0.05),
        "heads.logit_scale": (1.0, 0.0),
    }
    assert {name: found[name] for name in expected} == expected


def test_parameter_groups__every_trainable_once_and_nothing_frozen() -> None:
    model = tiny_model(MultiWayAdapter(mid_dim=2, enhancer_dim=2))
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=0.5)
    names = [name for group in groups for name in group.names]
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(names) == len(set(names))
    assert set(names) == trainable
    assert not any(name.startswith("backbone.") for name in names)
    # Layer-wise decay leaves adapters and heads alone.
    assert {group.scale for group in groups} == {1.0}


def test_make_optimizer__nothing_trains() -> None:
    model = tiny_model(FullFineTuning()).requires_grad_(False)
    with pytest.raises(ConfigError, match="mwa-eval"):
        make_optimizer(model, lr=1e-3, weight_decay=0.0, betas=BETAS, eps=EPS, layer_decay=1.0)


def test_make_optimizer__equals_formula_in_float64() -> None:
    """Ten steps of AdamW (Loshchilov and Hutter, algorithm 2) under warm-up, cosine and layer-wise decay."""
    torch.manual_seed(0)
    model = tiny_model(FullFineTuning())
    lr, decay, total, warmup = 1e-2, 0.05, 10, 3
    optimizer = make_optimizer(model, lr=lr, weight_decay=decay, betas=BETAS, eps=EPS, layer_decay=0.5)
    scheduler = make_scheduler(
        optimizer,
        lr=lr,
        min_lr=1e-4,
        total_steps=total,
        warmup_epochs=0,
        warmup_steps=warmup,
        steps_per_epoch=5,
    )
    settings = settings_of(model, layer_decay=0.5)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = {name: p.detach().double() for name, p in parameters.items()}
    first = {name: torch.zeros_like(w) for name, w in weights.items()}
    second = {name: torch.zeros_like(w) for name, w in weights.items()}
    for step in range(total):
        scheduled = 1e-4 + (lr - 1e-4) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        scheduled = lr * step / warmup if step < warmup else scheduled
        for name, parameter in parameters.items():
            parameter.grad = torch.randn_like(parameter)
            gradient = parameter.grad.double()
            scale, weight_decay = settings[name]
            rate = scheduled * scale
            first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * gradient
            second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * gradient**2
            mean = first[name] / (1 - BETAS[0] ** (step + 1))
            deviation = (second[name] / (1 - BETAS[1] ** (step + 1))).sqrt()
            weights[name] = weights[name] * (1 - rate * weight_decay) - rate * mean / (deviation + EPS)
        optimizer.step()
        scheduler.step()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach().double(), weights[name], rtol=1e-5, atol=1e-6)


@given(
    total=st.integers(1, 500),
    warmup=st.integers(0, 500),
    floor=st.floats(0, 1),
)
def test_cosine_with_warmup__bounds_and_ends(total: int, warmup: int, floor: float) -> None:
    factors = [
        cosine_with_warmup(step, total_steps=total, warmup_steps=warmup, floor=floor) for step in range(total + 1)
    ]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[0] == (0.0 if warmup else 1.0)
    rising = factors[: min(warmup, total) + 1]
    assert rising == sorted(rising)
    if warmup < total:
        assert factors[warmup] == 1.0
        assert factors[total] == pytest.approx(floor)
        assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


def test_make_scheduler__warmup_epochs_and_their_override() -> None:
    def rates(warmup_steps: int | None) -> list[float]:
        optimizer = GatedAdamW([nn.Parameter(torch.zeros(1))], lr=1.0, fused=True)
        scheduler = make_scheduler(
            optimizer,
            lr=1.0,
            min_lr=0.0,
            total_steps=20,
            warmup_epochs=0.5,
            warmup_steps=warmup_steps,
            steps_per_epoch=8,
        )
        found = []
        for _ in range(5):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    assert rates(None) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert rates(2)[:3] == [0.0, 0.5, 1.0]


def test_gated_step__closed_gate_changes_nothing() -> None:
    parameter = nn.Parameter(torch.randn(50))
    optimizer = GatedAdamW([parameter], lr=0.1, fused=True)
    parameter.grad = torch.randn(50)
    optimizer.step()
    weights = parameter.detach().clone()
    state = {key: value.clone() for key, value in optimizer.state[parameter].items()}

    optimizer.gate = torch.ones(())
    parameter.grad = torch.full((50,), float("nan"))
    optimizer.step()
    assert torch.equal(parameter, weights)
    assert all(torch.equal(optimizer.state[parameter][key], value) for key, value in state.items())

    optimizer.gate = torch.zeros(())
    parameter.grad = torch.randn(50)
    optimizer.step()
    assert not torch.equal(parameter, weights)
    assert optimizer.state[parameter]["step"] == 2


def test_gated_step__under_a_gradient_scaler() -> None:
    parameter = nn.Parameter(torch.randn(50))
    optimizer = GatedAdamW([parameter], lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    weights = parameter.detach().clone()
    for gradient, gate, steps in ((1.0, 1.0, False), (float("inf"), 0.0, False), (1.0, 0.0, True)):
        scaler.scale((parameter * 0).sum())
        parameter.grad = torch.full((50,), gradient)
        optimizer.gate = torch.tensor(gate)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(parameter, weights) != steps


@pytest.mark.parametrize(("adapter", "rate"), [(MultiWayAdapter, 2e-3), (ModeX, 6e-3), (FullFineTuning, 1e-3)])
def test_own_learning_rate__is_that_of_the_method_by_width(adapter: type[AdapterMethod], rate: float) -> None:
    assert own_learning_rate(tiny_model(adapter())) == pytest.approx(rate * 128 / 8)


def test_parameter_groups__the_scale_of_the_logits_has_a_factor_of_its_own() -> None:
    groups = parameter_groups(
        tiny_model(MultiWayAdapter()), weight_decay=0.05, layer_decay=1.0, logit_scale_factor=20.0
    )
    assert {group.scale: group.names for group in groups if group.scale != 1.0} == {20.0: ("heads.logit_scale",)}
