"""The fusion encoders: what each form computes, what it attends to, and what adapters find in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.adapters.files.adapter_file import load_adapter, save_adapter, trained_state
from mwa_lightning.adapters.full import FullFineTuning
from mwa_lightning.adapters.head_only import HeadOnly
from mwa_lightning.adapters.mwa import MultiWayAdapter
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.errors import ConfigError
from mwa_lightning.tasks.heads import FusionRetrievalHeads
from mwa_lightning.tasks.model import RetrievalModel

FORMS = [(0, False), (0, True), (2, False), (2, True)]
IDS = ["blip", "blip_pair", "albef", "albef_pair"]
each_form = pytest.mark.parametrize(("fusion_layers", "pair"), FORMS, ids=IDS)


def make(fusion_layers: int, pair: bool, **options: object) -> FusionEncoder:
    torch.manual_seed(0)
    backbone = FusionEncoder(
        name="probe", vision_width=32, vision_depth=2, vision_heads=4, vision_ffn_width=64, patch_size=8, image_size=16,
        text_width=16, text_heads=2, text_ffn_width=32, text_layers=3, fusion_layers=fusion_layers, vocabulary_size=40,
        text_positions=12, max_text_length=12, encoder_token=None if fusion_layers else -1, pair=pair, merge_from=2,
        token_types=2 if fusion_layers else 0, embedding_width=8, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return backbone.eval()


def run(backbone: FusionEncoder, *, padding: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, 3, 16, 16), generator=generator, dtype=torch.uint8)
    ids = torch.randint(1, 39, (3, 7), generator=generator)
    mask = torch.arange(7 + padding) < torch.tensor([7, 4, 2])[:, None]
    ids = nn.functional.pad(ids, (0, padding), value=5)
    with torch.no_grad():
        seen = [backbone.encode_image(batch) for batch in images[: backbone.images]]
        text, fused = backbone.encode_text(ids, mask), backbone.fuse(seen, ids, mask)
    return {"image": seen[0], "text": text[mask], "fused": fused[mask]}


@each_form
def test_padding__is_not_attended_to(fusion_layers: int, pair: bool) -> None:
    backbone = make(fusion_layers, pair)
    for name, expected in run(backbone).items():
        assert torch.allclose(run(backbone, padding=3)[name], expected, atol=1e-5), name


@each_form
def test_fuse__sees_each_image_of_its_form(fusion_layers: int, pair: bool) -> None:
    backbone = make(fusion_layers, pair)
    ids, mask = torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool)
    memory = [torch.randn(2, 5, 32) for _ in range(backbone.images)]
    with torch.no_grad():
        whole = backbone.fuse(memory, ids, mask)
        for image in range(backbone.images):
            other = [one + (place == image) for place, one in enumerate(memory)]
            assert not torch.allclose(backbone.fuse(other, ids, mask), whole, atol=1e-3)
    with pytest.raises(ConfigError, match=f"set backbone.pair={str(not pair).lower()}"):
        backbone.fuse(memory * 2 if not pair else memory[:1], ids, mask)


def test_fuse__blip_begins_with_the_encoder_token_and_leaves_the_ids_alone() -> None:
    backbone = make(0, False)
    memory = [torch.randn(1, 5, 32)]
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        fused = backbone.fuse(memory, ids, None)
        assert torch.equal(fused, backbone.fuse(memory, torch.tensor([[39, 2, 3]]), None))
    assert ids.tolist() == [[1, 2, 3]]


@each_form
def test_layers__official_numbers(fusion_layers: int, pair: bool) -> None:
    backbone = make(fusion_layers, pair)
    numbers = {stream: [layer for layer, _ in backbone.layers(stream)] for stream in backbone.streams}
    fusion = {(0, False): [0, 1, 2], (0, True): [0, 1, 2], (2, False): [3, 4], (2, True): [3, 4, 5, 6]}
    assert numbers == {"vision": [0, 1], "text": [0, 1, 2], "fusion": fusion[fusion_layers, pair]}
    crossing = {(site.stream, site.layer) for site in backbone.sites(backbone.streams) if site.branch == "cross_attn"}
    assert crossing == {("fusion", layer) for layer in numbers["fusion"]}
    widths = {site.stream: site.width for site in backbone.sites(backbone.streams)}
    assert widths == {"vision": 32, "text": 16, "fusion": 16}


def test_layers_above__own_encoder() -> None:
    backbone = make(2, True)
    above = {name: backbone.layers_above(name) for name, _ in backbone.named_parameters()}
    assert above["vision_embedding.cls_token"] == 3
    assert above["vision_blocks.1.ffn.vision.up.weight"] == 1
    assert above["vision_norm.weight"] == 0
    assert above["text_embedding.norm.bias"] == 8
    assert above["text_blocks.6.ffn.fusion.up.weight"] == 1


def test_pair__albef_neighbours_share_keys_and_values_alone() -> None:
    backbone = make(2, True)
    lower, upper = (block.cross_attention for _, block in backbone.layers("fusion")[:2])
    assert lower is not None
    assert upper is not None
    assert lower.key[0] is upper.key[0]
    assert lower.value[0] is upper.value[0]
    assert lower.query[0] is not upper.query[0]
    assert (lower.images, upper.images) == ((0,), (1,))


def test_construction__texts_longer_than_the_table() -> None:
    with pytest.raises(ConfigError, match="max_text_length=13: probe has positions for 12 tokens"):
        FusionEncoder(
            name="probe", vision_width=8, vision_depth=1, vision_heads=1, vision_ffn_width=8, patch_size=8,
            image_size=8, text_width=8, text_heads=1, text_ffn_width=8, text_layers=1, fusion_layers=0,
            vocabulary_size=9, text_positions=12, max_text_length=13,
        )  # fmt: skip


@each_form
def test_fuse__compiles_whole(fusion_layers: int, pair: bool) -> None:
    backbone = make(fusion_layers, pair)
    ids, mask = torch.ones(2, 4, dtype=torch.int64), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    memory = [torch.randn(2, 5, 32) for _ in range(backbone.images)]
    compiled = torch.compile(backbone.fuse, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(memory, ids, mask), backbone.fuse(memory, ids, mask))


class FusionModel(RetrievalModel):
    streams = ("vision", "text", "fusion")


METHODS: list[Callable[[], AdapterMethod]] = [
    lambda: MultiWayAdapter(mid_dim=4, enhancer_dim=6, dropout=0.0),
    FullFineTuning,
    HeadOnly,
]


@pytest.mark.parametrize("method", METHODS, ids=["mwa", "full", "head_only"])
@each_form
def test_adapters__train_what_they_should_and_survive_their_file(
    tmp_path: Path, fusion_layers: int, pair: bool, method: Callable[[], AdapterMethod]
) -> None:
    def model() -> FusionModel:
        backbone = make(fusion_layers, pair)
        heads = FusionRetrievalHeads(vision_width=32, text_width=16, width=8)
        return FusionModel(backbone=backbone, adapter=method(), heads=heads)

    trained = model()
    frozen = {name: p.detach().clone() for name, p in trained.named_parameters() if not p.requires_grad}
    backbone = trained.backbone
    assert isinstance(backbone, FusionEncoder)
    before = run(backbone)
    fresh = run(make(fusion_layers, pair))
    assert all(torch.equal(before[name], fresh[name]) for name in fresh)
    with torch.no_grad():
        for parameter in trained_state(trained).values():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    after = run(backbone)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == (set() if method is HeadOnly else set(before))
    for name, parameter in trained.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name]), name

    save_adapter(
        tmp_path / "adapter.safetensors", trained_state(trained), metadata={"fingerprint": "x", "backbone": "x"}
    )
    again = model()
    load_adapter(tmp_path / "adapter.safetensors", again, fingerprint="x")
    assert isinstance(again.backbone, FusionEncoder)
    restored = run(again.backbone)
    assert all(torch.equal(restored[name], after[name]) for name in after)
