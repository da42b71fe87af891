"""Files of the released ModeX code: their outputs on ALBEF and BLIP, one image and two; what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mwa_lightning.adapters.files.adapter_file import load_adapter, trained_state
from mwa_lightning.adapters.files.released_modex import holds_modex, modex_adapter, modex_options
from mwa_lightning.adapters.modex import ModeX
from mwa_lightning.backbones.checkpoints import load_backbone
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.backbones.sites import Stream
from mwa_lightning.errors import CheckpointError
from tests.parity.plain_modex import (
    CLASSES,
    DEPTH,
    FFN,
    FORMS,
    HEADS,
    IMAGE,
    LENGTH,
    MERGE_FROM,
    MID,
    PATCH,
    PROJECTED,
    VOCABULARY,
    WIDTH,
    PlainReleased,
)


class RetrievalHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision = nn.Linear(WIDTH, PROJECTED)
        self.text = nn.Linear(WIDTH, PROJECTED)
        self.matching = nn.Linear(WIDTH, 2)
        self.logit_scale = nn.Parameter(torch.tensor(0.0))


class ReasoningHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, CLASSES)


class Model(nn.Module):
    def __init__(self, plain: PlainReleased, checkpoint: Path, **options: Any) -> None:
        super().__init__()
        blip, pair = plain.family == "blip", plain.pair
        self.backbone = FusionEncoder(
            name=plain.family, vision_width=WIDTH, vision_depth=DEPTH, vision_heads=HEADS, vision_ffn_width=FFN,
            patch_size=PATCH, image_size=IMAGE, text_width=WIDTH, text_heads=HEADS, text_ffn_width=FFN,
            text_layers=4 if blip else 2, fusion_layers=0 if blip else 2, vocabulary_size=VOCABULARY,
            text_positions=LENGTH, max_text_length=10, encoder_token=-1 if blip else None, pair=pair,
            merge_from=MERGE_FROM,
        )  # fmt: skip
        self.heads = ReasoningHead() if pair else RetrievalHeads()
        load_backbone(self.backbone, self.heads, checkpoint)
        self.adapter = ModeX(**({"variant": "released", "mid_dim": MID} | options))
        streams: tuple[Stream, ...] = ("vision", "fusion") if blip and pair else ("vision", "text", "fusion")
        self.adapter.attach(self.backbone, self.heads, streams=streams)


def write(folder: Path, plain: PlainReleased) -> tuple[Path, Path]:
    """The whole file, and the pretrained model that it began from: other norms, heads and merge layers, no adapters."""
    whole, pretrained = folder / "released.pth", folder / "pretrained.pth"
    torch.save({"model": plain.state, "epoch": 3}, whole)
    trained = ("norm", "LayerNorm", "temp", "cls_head", "merge_layer")
    before = {
        key: tensor * 1.5 if any(part in key for part in trained) else tensor
        for key, tensor in plain.state.items()
        if ".modex." not in key
    }
    torch.save({"model": before}, pretrained)
    return whole, pretrained


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.std()).item()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    images = torch.randn(2, 3, 3, IMAGE, IMAGE, generator=generator)
    ids = torch.randint(VOCABULARY - 1, (3, 7), generator=generator)
    return images, ids, torch.arange(7) < torch.tensor([7, 4, 2])[:, None]


@pytest.mark.parametrize(("family", "pair"), FORMS)
def test_released__a_whole_file_gives_their_outputs(family: str, pair: bool, tmp_path: Path) -> None:
    plain = PlainReleased(family, pair=pair)
    whole, pretrained = write(tmp_path, plain)
    model = Model(plain, pretrained).eval()
    load_adapter(whole, model, fingerprint=model.backbone.fingerprint)
    images, ids, mask = inputs()
    with torch.no_grad():
        memory = [plain.image(each) for each in images[: 2 if pair else 1]]
        ours = [model.backbone.encode_image(each) for each in images[: 2 if pair else 1]]
        assert relative_error(ours[0], memory[0]) < 2e-5
        real = mask[..., None]
        fused, theirs = model.backbone.fuse(ours, ids, mask) * real, plain.fused(memory, ids, mask) * real
        assert relative_error(fused, theirs) < 2e-5
        if not pair:
            texts, alone = model.backbone.encode_text(ids, mask) * real, plain.text(ids, mask) * real
            assert relative_error(texts, alone) < 2e-5
            assert model.heads.logit_scale.item() == pytest.approx(-math.log(0.05))
        for module in model.adapter.coordinated.values():
            module.temperature = 1.0
        assert relative_error(model.backbone.fuse(ours, ids, mask) * real, theirs) > 1e-2


@pytest.mark.parametrize(("family", "pair"), FORMS)
def test_released__every_tensor_that_trains_comes_from_the_file(family: str, pair: bool, tmp_path: Path) -> None:
    plain = PlainReleased(family, pair=pair)
    whole, pretrained = write(tmp_path, plain)
    model = Model(plain, pretrained)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_adapter(whole, model, fingerprint=model.backbone.fingerprint)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(trained_state(model))
    assert modex_options(plain.state, origin="file") == {"variant": "released", "mid_dim": MID}


@pytest.mark.parametrize(("family", "pair"), FORMS)
def test_released__a_whole_file_is_a_backbone_checkpoint_too(family: str, pair: bool, tmp_path: Path) -> None:
    plain = PlainReleased(family, pair=pair)
    model = Model(plain, write(tmp_path, plain)[0])
    norm = model.backbone.vision_norm.weight
    assert torch.equal(norm, plain.state["visual_encoder.norm.weight"])


def test_load_adapter__what_was_trained_alone_is_enough(tmp_path: Path) -> None:
    """LAVIS as it was drops from its files what is frozen, but for the aliases."""
    plain = PlainReleased("albef", pair=False)
    whole, pretrained = write(tmp_path, plain)
    first, second = Model(plain, pretrained), Model(plain, pretrained)
    load_adapter(whole, first, fingerprint=first.backbone.fingerprint)
    trained = ("norm", "LayerNorm", "temp", ".modex.")
    part = {key: tensor for key, tensor in plain.state.items() if any(name in key for name in trained)}
    torch.save({"model": part}, whole)
    load_adapter(whole, second, fingerprint=second.backbone.fingerprint)
    theirs = trained_state(first)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in trained_state(second).items())


@pytest.mark.parametrize(("family", "pair"), FORMS)
def test_released__all_but_the_declared_get_a_gradient(family: str, pair: bool, tmp_path: Path) -> None:
    plain = PlainReleased(family, pair=pair)
    model = Model(plain, write(tmp_path, plain)[1])
    images, ids, mask = inputs()
    memory = [model.backbone.encode_image(each) for each in images[: 2 if pair else 1]]
    loss = model.backbone.fuse(memory, ids, mask)[:, 0].square().sum()
    if not pair:
        loss = loss + model.backbone.encode_text(ids, mask)[:, 0].square().sum()
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("heads.")}
    assert {name for name, p in trained.items() if p.grad is None} == model.adapter.declared_unused
    expected = {f"text_{layer}_ffn" for layer in range(2)} if (family, pair) == ("albef", True) else set()
    assert {name.split(".")[2] for name in model.adapter.declared_unused} == expected


def test_released__starts_as_the_authors_code_does(tmp_path: Path) -> None:
    plain = PlainReleased("albef", pair=False)
    model = Model(plain, write(tmp_path, plain)[1], mid_dim=64)
    drawn = dict(model.adapter.named_parameters())
    weights = torch.cat([tensor.detach().flatten() for name, tensor in drawn.items() if name.endswith("weight")])
    assert weights.std().item() == pytest.approx(0.02, rel=0.03)
    assert abs(weights.mean().item()) < 1e-3
    assert all((tensor == 0).all() for name, tensor in drawn.items() if name.endswith("bias"))
    assert {name for name in trained_state(model) if name.startswith("heads.")} == {"heads.logit_scale"}


def test_modex_adapter__copies_that_differ_are_refused() -> None:
    state = PlainReleased("albef", pair=False).state
    key = "text_encoder.encoder.layer.3.output.modex.cross_msa.up_proj.bias"
    with pytest.raises(CheckpointError, match=rf"file: holds copies of one adapter that differ \({key}\)"):
        modex_adapter(state | {key: state[key] + 1}, origin="file")


def test_modex_adapter__modules_of_a_decoder_are_refused() -> None:
    state = PlainReleased("blip", pair=False).state
    key = "text_encoder.encoder.layer.0.modex.decoder_msa.D_fc1.weight"
    with pytest.raises(CheckpointError, match=rf"has parts that adapter.variant=released lacks \({key}\)"):
        modex_adapter(state | {key: torch.zeros(1)}, origin="file")


def test_load_adapter__a_file_of_the_other_family_is_refused(tmp_path: Path) -> None:
    blip, albef = PlainReleased("blip", pair=False), PlainReleased("albef", pair=False)
    model = Model(albef, write(tmp_path, albef)[1])
    whole, _ = write(tmp_path, blip)
    assert holds_modex(blip.state)
    with pytest.raises(CheckpointError, match=r"does not fit"):
        load_adapter(whole, model, fingerprint=model.backbone.fingerprint)
