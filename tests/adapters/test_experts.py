"""ModeX's modules: numbers worked out by hand, gradients in closed form, variants, records."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mwa_lightning.adapters.experts import EXPERTS, CoordinatedExperts, Expert, UnfusedExpert, recording
from mwa_lightning.backbones.sites import SlotContext

ALONE = SlotContext("text", None, None)
FUSED = SlotContext("text", None, None, fused=True)


def fill(parameter: Tensor, *rows: float | list[float]) -> None:
    with torch.no_grad():
        parameter.copy_(torch.tensor(rows, dtype=parameter.dtype))


def by_hand(**options: Any) -> CoordinatedExperts:
    """Width 2, bottleneck 1, temperature 2: numbers that can be followed with a pencil."""
    experts = CoordinatedExperts(width=2, mid_dim=1, temperature=2.0, **options)
    fill(experts.down.weight, [1.0, 2.0])
    fill(experts.down.bias, -1.0)
    for name, weight, bias in (
        ("text", [[1.0], [0.0]], [0.0, 1.0]),
        ("vision", [[0.0], [2.0]], [3.0, 0.0]),
        ("cross", [[-1.0], [1.0]], [0.0, 0.0]),
    ):
        fill(experts.ups[name].weight, *weight)
        fill(experts.ups[name].bias, *bias)
    if experts.coordinator is not None:
        fill(experts.coordinator.weight, [2 * math.log(2), 0.0], [0.0, 2 * math.log(3)], [0.0, 0.0])
        fill(experts.coordinator.bias, 0.0, 0.0, 2 * math.log(4))
    return experts


def test_expert__adds_the_bottleneck_of_what_stands_in_the_slot() -> None:
    expert = Expert(width=2, mid_dim=1)
    fill(expert.bottleneck.down.weight, [1.0, -1.0])
    fill(expert.bottleneck.down.bias, 1.0)
    fill(expert.bottleneck.up.weight, [2.0], [-1.0])
    fill(expert.bottleneck.up.bias, 0.5, 0.25)
    y = torch.tensor([[[3.0, 1.0], [0.0, 5.0]]])
    # Hidden: 3 - 1 + 1 = 3, and max(0, 0 - 5 + 1) = 0.
    expected = torch.tensor([[[3.0 + 6.5, 1.0 - 2.75], [0.5, 5.25]]])
    assert torch.equal(expert(y, torch.full_like(y, 9.0), ALONE), expected)


def test_unfused_expert__is_the_identity_in_a_fused_pass() -> None:
    expert = UnfusedExpert(width=2, mid_dim=1)
    fill(expert.bottleneck.up.bias, 1.0, 2.0)
    y = torch.randn(1, 3, 2)
    assert expert(y, y, FUSED) is y
    assert torch.equal(expert(y, y, ALONE), y + torch.tensor([1.0, 2.0]))


def test_coordinated__outputs_worked_out_by_hand() -> None:
    experts = by_hand()
    y = torch.tensor([[[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]])
    # Logits over temperature: (ln 2, ln 3, ln 4), (0, 0, ln 4), (ln 2, 0, ln 4): weights in the ratios below.
    weights = torch.tensor([[[2.0, 3.0, 4.0], [1.0, 1.0, 4.0], [2.0, 1.0, 4.0]]])
    torch.testing.assert_close(experts.weigh(y), weights / weights.sum(dim=-1, keepdim=True))
    # Hidden: 1 + 2 - 1 = 2, max(0, -1) = 0, 1 - 1 = 0. Experts: text (h, 1), vision (3, 2 h), cross (-h, h).
    first = [1 + (2 * 2 + 3 * 3 + 4 * -2) / 9, 1 + (2 * 1 + 3 * 4 + 4 * 2) / 9]
    expected = torch.tensor([[first, [0 + 3 * 1 / 6, 0 + 1 * 1 / 6], [1 + 1 * 3 / 7, 0 + 2 * 1 / 7]]])
    torch.testing.assert_close(experts(y, torch.full_like(y, 9.0), ALONE), expected)


def closed_form(experts: CoordinatedExperts, y: Tensor, upstream: Tensor, *, hard: bool) -> dict[str, Tensor]:
    """The gradients of upstream @ output for one token y (d,), by the chain rule on paper.

    With output y + sum_e w_e v_e, v_e = U_e h + b_e, w = softmax(l / t): dL/dl_e = w_e (g.v_e - sum_f w_f g.v_f) / t.
    In the straight-through form the experts get the hard weights, and the coordinator the soft ones' derivative.
    """
    assert experts.coordinator is not None
    down, coordinator, ups = experts.down, experts.coordinator, list(experts.ups.values())
    before = down.weight @ y + down.bias
    hidden = before.clamp(min=0)
    soft = torch.softmax((coordinator.weight @ y + coordinator.bias) / experts.temperature, dim=0)
    used = torch.eye(3, dtype=y.dtype)[soft.argmax()] if hard else soft
    worth = torch.stack([upstream @ (up.weight @ hidden + up.bias) for up in ups])
    logits = soft * (worth - soft @ worth) / experts.temperature
    to_before = sum(weight * (up.weight.T @ upstream) for weight, up in zip(used, ups, strict=True)) * (before > 0)
    gradients = {
        "y": upstream + down.weight.T @ to_before + coordinator.weight.T @ logits,
        "down.weight": torch.outer(to_before, y),
        "down.bias": to_before,
        "coordinator.weight": torch.outer(logits, y),
        "coordinator.bias": logits,
    }
    for weight, name in zip(used, EXPERTS, strict=True):
        gradients[f"ups.{name}.weight"] = weight * torch.outer(upstream, hidden)
        gradients[f"ups.{name}.bias"] = weight * upstream
    return gradients


@pytest.mark.parametrize("coordinator", ["softmax", "top1"])
def test_coordinated__gradients_are_those_of_the_closed_form(coordinator: Any) -> None:
    torch.manual_seed(3)
    experts = CoordinatedExperts(width=3, mid_dim=2, temperature=1.5, coordinator=coordinator).double()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    largest = 0.0
    for _ in range(5):
        y = torch.randn(3, dtype=torch.float64, requires_grad=True)
        upstream = torch.randn(3, dtype=torch.float64)
        experts.zero_grad()
        (experts(y[None, None], y[None, None], ALONE)[0, 0] @ upstream).backward()
        with torch.no_grad():
            expected = closed_form(experts, y.detach(), upstream, hard=coordinator == "top1")
        got = {"y": y.grad} | {name: parameter.grad for name, parameter in experts.named_parameters()}
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            # The softmax is fp32, whatever the rest is.
            torch.testing.assert_close(got[name], gradient, rtol=2e-6, atol=2e-6, msg=name)
        largest = max(largest, *(float(expected[name].abs().max()) for name in ("down.bias", "coordinator.bias")))
    assert largest > 0.1


def test_coordinated__top1_takes_the_best_expert_alone() -> None:
    experts = by_hand(coordinator="top1")
    y = torch.tensor([[[1.0, 1.0], [4.0, 0.0], [0.0, 4.0]]])
    assert torch.equal(experts.weigh(y), torch.tensor([[[0.0, 0, 1], [1.0, 0, 0], [0.0, 1, 0]]]))
    # Hidden 2, 3, 7; cross (-h, h), text (h, 1), vision (3, 2 h).
    expected = torch.tensor([[[1.0 - 2, 1 + 2], [4.0 + 3, 0 + 1], [0.0 + 3, 4 + 14]]])
    assert torch.equal(experts(y, y, ALONE), expected)


def test_coordinated__uniform_gives_a_third_each_and_has_no_coordinator() -> None:
    experts = by_hand(coordinator="uniform")
    assert not any("coordinator" in name for name, _ in experts.named_parameters())
    y = torch.tensor([[[1.0, 1.0]]])
    expected = torch.tensor([[[1 + (2 + 3 - 2) / 3, 1 + (1 + 4 + 2) / 3]]])
    torch.testing.assert_close(experts(y, y, ALONE), expected)


def test_coordinated__keeps_the_type_and_weighs_in_fp32() -> None:
    experts = CoordinatedExperts(width=8, mid_dim=2)
    y = torch.randn(2, 3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert experts.weigh(y).dtype == torch.float32
        assert experts(y.bfloat16(), y.bfloat16(), ALONE).dtype == torch.bfloat16
    halved = experts.bfloat16()
    assert halved(y.bfloat16(), y.bfloat16(), ALONE).dtype == torch.bfloat16


def test_coordinated__experts_part_from_the_first_steps_on() -> None:
    """All begin at zero, with gradients that differ by their weights only: the coordinator tells them apart."""
    torch.manual_seed(0)
    experts = CoordinatedExperts(width=8, mid_dim=4, temperature=1.0)
    y, wanted = torch.randn(1, 20, 8), torch.randn(1, 20, 8)
    optimizer = torch.optim.SGD(experts.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        (experts(y, y, ALONE) - wanted).square().mean().backward()
        optimizer.step()
    ups = [up.weight for up in experts.ups.values()]
    assert min((ups[a] - ups[b]).abs().max() for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-3


def test_recording__sums_real_tokens_of_all_passes_and_ends_with_its_context() -> None:
    experts = by_hand()
    module = torch.nn.ModuleDict({"one": experts, "other": torch.nn.Linear(2, 2)})
    y = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[1.0, 0.0], [5.0, 5.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    with recording(module, per_token=True) as records:
        experts(y, y, SlotContext("fusion", mask, None))
        experts(y[:1], y[:1], SlotContext("fusion", None, None))
    experts(y, y, ALONE)
    assert list(records) == ["one"]
    ratios = [[2 / 9, 3 / 9, 4 / 9], [1 / 6, 1 / 6, 4 / 6], [2 / 7, 1 / 7, 4 / 7]]
    counts = [2, 2, 1]  # how often each of the three real tokens passed
    expected = [sum(n * row[e] for n, row in zip(counts, ratios, strict=True)) for e in range(3)]
    entropy = sum(n * -sum(w * math.log(w) for w in row) for n, row in zip(counts, ratios, strict=True))
    totals = records["one"].totals
    assert totals is not None
    torch.testing.assert_close(totals, torch.tensor([*expected, entropy, 5.0], dtype=torch.float64), rtol=1e-6, atol=0)
    first, second = records["one"].passes
    torch.testing.assert_close(first.weights[1, 0], torch.tensor(ratios[2]))
    assert first.mask is mask
    assert second.mask is None
    assert len(second.weights) == 1


def test_recording__without_tokens_keeps_the_sums_only() -> None:
    experts = by_hand()
    y = torch.randn(2, 3, 2)
    with recording(experts) as records:
        experts(y, y, ALONE)
    assert records[""].passes == []
    assert records[""].totals is not None
