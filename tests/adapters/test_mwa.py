"""MultiWay-Adapter: identity at the start, effect when trained, sharing, and the promised sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mwa_lightning.adapters.mwa import Bottleneck, MultiWayAdapter
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.errors import ConfigError

STREAMS = ("vision", "text")


def make_backbone(seed: int = 0) -> Multiway:
    torch.manual_seed(seed)
    backbone = Multiway(
        name="probe", width=32, depth=3, heads=4, ffn_width=128, patch_size=8, image_size=32, vocabulary_size=50,
        text_positions=20, max_text_length=16,
    )  # fmt: skip
    return backbone.eval()


def attach(backbone: Multiway, **options: object) -> MultiWayAdapter:
    adapter = MultiWayAdapter(**options)  # type: ignore[arg-type]
    adapter.attach(backbone, nn.Linear(1, 1), streams=STREAMS)
    return adapter.eval()


def ways_of_running(backbone: Multiway) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    ids = torch.randint(4, 50, (3, 9), generator=generator)
    mask = torch.arange(9) < torch.tensor([9, 5, 2])[:, None]
    with torch.no_grad():
        fused = backbone.fuse(images, ids, mask)
        return {
            "image": backbone.encode_image(images),
            "text": backbone.encode_text(ids, mask),
            "fused vision": fused[0],
            "fused text": fused[1],
        }


def perturb(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


def test_attach__fresh_adapter_leaves_every_output_equal_and_a_perturbed_one_changes_all() -> None:
    backbone = make_backbone()
    frozen = ways_of_running(backbone)
    adapter = attach(backbone, mid_dim=4, enhancer_dim=6)
    fresh = ways_of_running(backbone)
    perturb(adapter)
    changed = ways_of_running(backbone)
    for way, output in frozen.items():
        assert torch.equal(fresh[way], output), way
        assert not torch.allclose(changed[way], output, atol=1e-2), way


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"extractor_text": False, "enhancer": "none"}, {"image", "fused vision", "fused text"}),
        ({"extractor_vision": False, "enhancer": "none"}, {"text", "fused vision", "fused text"}),
        ({"extractor_vision": False, "extractor_text": False}, {"image", "text", "fused vision", "fused text"}),
    ],
)
def test_attach__each_part_alone_changes_what_it_should(options: dict[str, object], changed: set[str]) -> None:
    backbone = make_backbone()
    frozen = ways_of_running(backbone)
    perturb(attach(backbone, mid_dim=4, enhancer_dim=6, **options))
    after = ways_of_running(backbone)
    assert {way for way in frozen if not torch.equal(frozen[way], after[way])} == changed


def test_extractor__adds_scaled_bottleneck_of_the_residual_stream_to_the_ffn() -> None:
    backbone = make_backbone()
    adapter = attach(backbone, mid_dim=4, scale=0.5, enhancer="none", extractor_text=False, first_layer=2)
    perturb(adapter)
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    block = backbone.blocks[2]
    block.ffn["vision"].register_forward_hook(keep("ffn"))
    block.register_forward_hook(keep("block"))
    block.ffn_norm["vision"].register_forward_hook(lambda module, inputs, output: seen.__setitem__("x", inputs[0]))
    ways_of_running(backbone)
    extractor = adapter.extractors["vision_2"]
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        backbone.encode_image(images)
        x, bottleneck = seen["x"], extractor.bottleneck
        hidden = torch.clamp(x @ bottleneck.down.weight.T + bottleneck.down.bias, min=0)
        expected = x + seen["ffn"] + 0.5 * (hidden @ bottleneck.up.weight.T + bottleneck.up.bias)
    torch.testing.assert_close(seen["block"]["vision"], expected)  # type: ignore[index]


def test_enhancer__adds_its_bottleneck_of_the_blocks_output() -> None:
    backbone = make_backbone()
    adapter = attach(backbone, enhancer_dim=6, extractor_vision=False, extractor_text=False, first_layer=2)
    perturb(adapter)
    seen: dict[str, Any] = {}
    block = backbone.blocks[2]
    block.ffn["vision"].register_forward_hook(lambda module, inputs, output: seen.__setitem__("ffn", output))
    block.ffn_norm["vision"].register_forward_hook(lambda module, inputs, output: seen.__setitem__("x", inputs[0]))
    block.register_forward_hook(lambda module, inputs, output: seen.__setitem__("block", output))
    inner = adapter.get_submodule("enhancers.2.inner")
    assert isinstance(inner, Bottleneck)
    with torch.no_grad():
        backbone.encode_image(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
        y = seen["x"] + seen["ffn"]
        hidden = torch.clamp(y @ inner.down.weight.T + inner.down.bias, min=0)
        expected = y + hidden @ inner.up.weight.T + inner.up.bias
    torch.testing.assert_close(seen["block"]["vision"], expected)


def test_bottleneck__drops_hidden_channels_in_training_only() -> None:
    bottleneck = Bottleneck(width=1, mid_dim=4000, dropout=0.25)
    with torch.no_grad():
        bottleneck.down.weight.fill_(1.0)
        bottleneck.up.weight.fill_(1.0)  # the sum over the channels counts those that are left
        x = torch.ones(1, 1, 1)
        torch.manual_seed(0)
        assert 0.75 * bottleneck.train()(x).item() == pytest.approx(3000, abs=150)
        assert bottleneck.eval()(x).item() == 4000


def test_attach__drops_in_extractors_alone_and_by_default_as_released() -> None:
    adapter = attach(make_backbone())
    extractors = {(module.scale, module.bottleneck.dropout) for module in adapter.extractors.values()}
    assert extractors == {(0.6, 0.1)}
    assert {module.inner.dropout for module in adapter.enhancers.values()} == {0.0}


def test_enhancer__is_one_module_a_layer_shared_by_the_streams() -> None:
    backbone = make_backbone()
    adapter = attach(backbone, mid_dim=4, enhancer_dim=6, first_layer=1)
    assert sorted(adapter.enhancers) == ["1", "2"]
    for layer in (1, 2):
        fillers = {
            place.stream: module for place, module in backbone.blocks[layer].slots.items() if place.slot == "on_top"
        }
        assert fillers["vision"] is fillers["text"] is adapter.enhancers[str(layer)]
    assert not backbone.blocks[0].slots


def test_attach__freezes_the_backbone_which_does_not_own_the_adapter() -> None:
    backbone = make_backbone()
    names = set(backbone.state_dict())
    adapter = attach(backbone, mid_dim=4, enhancer_dim=6)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert set(backbone.state_dict()) == names
    assert all(parameter.requires_grad for parameter in adapter.parameters())


def test_backward__layers_below_the_first_adapted_one_have_no_graph() -> None:
    backbone = make_backbone()
    attach(backbone, mid_dim=4, enhancer_dim=6, first_layer=2)
    graph: list[bool] = []
    for block in backbone.blocks:
        block.register_forward_hook(lambda module, inputs, output: graph.append(output["vision"].requires_grad))
    backbone.encode_image(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert graph == [False, False, True]


@pytest.mark.parametrize(
    ("width", "depth", "total", "extractors", "share"),
    [(768, 12, 222_167_041, 2_379_264, 2.67), (1024, 24, 674_799_617, 6_343_680, 2.34)],
)
def test_size__is_two_to_three_percent_on_base_and_large(
    width: int, depth: int, total: int, extractors: int, share: float
) -> None:
    with torch.device("meta"):
        backbone = Multiway(
            name="probe", width=width, depth=depth, heads=width // 64, ffn_width=4 * width, patch_size=16,
            image_size=224, vocabulary_size=64010,
        )  # fmt: skip
        adapter = MultiWayAdapter()
        adapter.attach(backbone, nn.Linear(1, 1), streams=STREAMS)
    heads = 2 * width * width + 1
    assert sum(parameter.numel() for parameter in backbone.parameters()) + heads == total
    assert sum(parameter.numel() for parameter in adapter.extractors.parameters()) == extractors
    added = sum(parameter.numel() for parameter in adapter.parameters())
    assert round(100 * added / total, 2) == share


def test_constructor__refuses_an_adapter_without_parts() -> None:
    with pytest.raises(ConfigError, match="every part is switched off"):
        MultiWayAdapter(extractor_vision=False, extractor_text=False, enhancer="none")


def test_attach__refuses_a_first_layer_above_the_top() -> None:
    with pytest.raises(ConfigError, match=r"MultiWayAdapter needs .* from 3 up, and probe offers none"):
        attach(make_backbone(), first_layer=3)
