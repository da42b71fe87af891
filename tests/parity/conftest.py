"""The references: BEiT-3 of torchscale 0.2.0 and the models of transformers, with every tensor drawn at random."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

if importlib.util.find_spec("timm") is None:
    # torchscale takes one function of timm, stochastic depth, which is off here; timm itself needs torchvision, which
    # has no build beside the CPU torch of the tests.
    layers = types.ModuleType("timm.models.layers")
    layers.drop_path = lambda x, *_: x  # type: ignore[attr-defined]
    for name in ("timm", "timm.models"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["timm.models.layers"] = layers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what compares with a package that is not installed: `parity("transformers")`, by default torchscale."""
    for item in items:
        for marker in item.iter_markers("parity"):
            package = marker.args[0] if marker.args else "torchscale"
            if importlib.util.find_spec(package) is None:
                reason = f"{package} is not installed: pip install --no-deps -r requirements/parity.txt"
                item.add_marker(pytest.mark.skip(reason=reason))


def _make(
    *, width: int, depth: int, heads: int, patch_size: int, image_size: int, vocabulary_size: int, **more: Any
) -> nn.Module:
    """BEiT-3 as the official fine-tuning code configures it."""
    from torchscale.architecture.config import EncoderConfig
    from torchscale.model.BEiT3 import BEiT3

    return BEiT3(
        EncoderConfig(
            img_size=image_size,
            patch_size=patch_size,
            vocab_size=vocabulary_size,
            multiway=True,
            layernorm_embedding=False,
            normalize_output=True,
            no_output_layer=True,
            drop_path_rate=0,
            encoder_embed_dim=width,
            encoder_attention_heads=heads,
            encoder_ffn_embed_dim=4 * width,
            encoder_layers=depth,
            **more,
        )
    ).eval()


def _randomize(module: nn.Module, *, width: int, seed: int) -> None:
    """Draw every tensor: the gains of norms from N(1, 0.2), the rest from N(0, 0.2).

    At the default initialisation most biases are 0 and most gains 1, and swapped ones would go unnoticed. Beyond
    width 64 the weights of linear layers shrink by sqrt(64 / width), so that the logits of attention stay as large
    as at width 64. Without that they have a deviation of 31 at width 768, attention picks single tokens, and
    torchscale itself differs between fp32 and fp64 by 2e-2 after 12 layers: no two orders of summation agree.
    """
    generator = torch.Generator().manual_seed(seed)
    gains = {id(norm.weight) for norm in module.modules() if isinstance(norm, nn.LayerNorm)}
    weights = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    weights |= {id(layer.in_proj_weight) for layer in module.modules() if isinstance(layer, nn.MultiheadAttention)}
    shrunk = min(1.0, (64 / width) ** 0.5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(1.0 if id(parameter) in gains else 0.0, 0.2, generator=generator)
            if id(parameter) in weights:
                parameter.mul_(shrunk)


@pytest.fixture(scope="session")
def make_reference() -> Callable[..., nn.Module]:
    """`make_reference(width=, depth=, heads=, patch_size=, image_size=, vocabulary_size=)`: torchscale's BEiT-3."""
    return _make


@pytest.fixture(scope="session")
def randomize() -> Callable[..., None]:
    """`randomize(module, width=, seed=)`: every tensor drawn at random."""
    return _randomize


@pytest.fixture(scope="session")
def relative_error() -> Callable[[Tensor, Tensor], float]:
    """`relative_error(ours, theirs)`: the root mean square of the difference over the spread of theirs.

    Or a tenth of the largest difference, where that is more: a single wrong number cannot hide among many. (In fp32
    the largest of the 10^4 to 10^6 differences lies 5 to 10 times above their root mean square.)
    """

    def measure(ours: Tensor, theirs: Tensor) -> float:
        assert ours.shape == theirs.shape
        difference, spread = ours.double() - theirs.double(), theirs.double().std()
        return max(difference.square().mean().sqrt(), difference.abs().max() / 10).item() / spread.item()

    return measure
