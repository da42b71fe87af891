"""Files of the released ModeX code: their outputs on ALBEF and BLIP, one image and two; what is refused.

The reference is written in plain tensor operations from a description of that code's insertion points, on the file's
own names; it shares nothing with the package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mwa_lightning.adapters.files import load_adapter, trained_state
from mwa_lightning.adapters.modex import ModeX
from mwa_lightning.adapters.released_modex import holds_modex, modex_adapter, modex_options
from mwa_lightning.backbones.checkpoints import load_backbone
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.backbones.sites import Stream
from mwa_lightning.errors import CheckpointError

WIDTH, HEADS, FFN, MID, CLASSES, PROJECTED = 16, 4, 24, 5, 2, 6
DEPTH, IMAGE, PATCH, VOCABULARY, LENGTH, MERGE_FROM = 4, 16, 8, 30, 12, 2
# Layers of text, and the lowest that sees the image.
LAYERS = {("blip", False): (4, 0), ("blip", True): (4, 0), ("albef", False): (4, 2), ("albef", True): (6, 2)}
FORMS = sorted(LAYERS)


class PlainReleased:
    """The released code's forward passes on tensors by its names."""

    def __init__(self, family: str, *, pair: bool, seed: int = 0) -> None:
        self.family, self.pair = family, pair
        self.layers, self.first_fusion = LAYERS[family, pair]
        self.generator = torch.Generator().manual_seed(seed)
        self.state: dict[str, Tensor] = {}
        self._draw()

    def _linear(self, name: str, width_in: int, width_out: int) -> None:
        self.state[f"{name}.weight"] = 0.2 * torch.randn(width_out, width_in, generator=self.generator)
        self.state[f"{name}.bias"] = 0.2 * torch.randn(width_out, generator=self.generator)

    def _norm(self, name: str) -> None:
        self.state[f"{name}.weight"] = 1 + 0.2 * torch.randn(WIDTH, generator=self.generator)
        self.state[f"{name}.bias"] = 0.2 * torch.randn(WIDTH, generator=self.generator)

    def _draw(self) -> None:
        patches = (IMAGE // PATCH) ** 2
        tables = {"visual_encoder.cls_token": (1, 1, WIDTH), "visual_encoder.pos_embed": (1, 1 + patches, WIDTH)}
        tables |= {"visual_encoder.patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH)}
        tables |= {"visual_encoder.patch_embed.proj.bias": (WIDTH,)}
        tables |= {"text_encoder.embeddings.word_embeddings.weight": (VOCABULARY, WIDTH)}
        tables |= {"text_encoder.embeddings.position_embeddings.weight": (LENGTH, WIDTH)}
        for name, shape in tables.items():
            self.state[name] = 0.2 * torch.randn(shape, generator=self.generator)
        self.state["text_encoder.embeddings.position_ids"] = torch.arange(LENGTH)[None]
        self._norm("visual_encoder.norm")
        self._norm("text_encoder.embeddings.LayerNorm")
        for layer in range(DEPTH):
            block = f"visual_encoder.blocks.{layer}"
            self._norm(f"{block}.norm1")
            self._norm(f"{block}.norm2")
            self._linear(f"{block}.attn.qkv", WIDTH, 3 * WIDTH)
            self._linear(f"{block}.attn.proj", WIDTH, WIDTH)
            self._linear(f"{block}.mlp.fc1", WIDTH, FFN)
            self._linear(f"{block}.mlp.fc2", FFN, WIDTH)
        for layer in range(self.layers):
            self._draw_text_layer(layer)
        if self.pair:
            self._linear("cls_head.0", WIDTH, WIDTH)
            self._linear("cls_head.2", WIDTH, CLASSES)
        else:
            self._linear("vision_proj", WIDTH, PROJECTED)
            self._linear("text_proj", WIDTH, PROJECTED)
            self._linear("itm_head", WIDTH, 2)
            self.state["temp"] = torch.tensor(0.05)
        for layer in range(max(DEPTH, self.layers)):
            self._draw_modex(layer)
        # A momentum copy lags behind; queues are of training only.
        momentum = {
            f"{part}_m.{rest}": tensor + 1
            for key, tensor in self.state.items()
            for part, _, rest in [key.partition(".")]
            if part in ("visual_encoder", "text_encoder", "cls_head", "vision_proj")
        }
        self.state |= momentum | {"image_queue": torch.zeros(2, 3), "queue_ptr": torch.zeros(1)}

    def _draw_text_layer(self, layer: int) -> None:
        here = f"text_encoder.encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            self._linear(f"{here}.attention.self.{part}", WIDTH, WIDTH)
        self._linear(f"{here}.attention.output.dense", WIDTH, WIDTH)
        self._norm(f"{here}.attention.output.LayerNorm")
        if layer >= self.first_fusion:
            for number in ("0", "1") if self.pair and self.family == "blip" else ("",):
                for part in ("query", "key", "value"):
                    self._linear(f"{here}.crossattention.self{number}.{part}", WIDTH, WIDTH)
                self._linear(f"{here}.crossattention.output.dense{number}", WIDTH, WIDTH)
            self._norm(f"{here}.crossattention.output.LayerNorm")
            if self.pair and self.family == "blip" and layer >= MERGE_FROM:
                self._linear(f"{here}.crossattention.output.merge_layer", 2 * WIDTH, WIDTH)
            if self.pair and self.family == "albef" and (layer - self.first_fusion) % 2:
                for part in ("key", "value"):  # neighbours share these
                    for kind in ("weight", "bias"):
                        name = f"crossattention.self.{part}.{kind}"
                        lower = f"text_encoder.encoder.layer.{layer - 1}.{name}"
                        self.state[f"{here}.{name}"] = self.state[lower].clone()
        self._linear(f"{here}.intermediate.dense", WIDTH, FFN)
        self._linear(f"{here}.output.dense", FFN, WIDTH)
        self._norm(f"{here}.output.LayerNorm")

    def _draw_modex(self, layer: int) -> None:
        """One object a layer, saved under the name of each module that calls it."""
        modules = ["visual_msa", "visual_ffn"] if layer < DEPTH else []
        if self.family == "blip":
            modules.append("cross_msa")
        else:
            modules += ["textual_msa", *(["cross_msa", "cross_ffn"] if layer >= self.first_fusion else ["textual_ffn"])]
        holders = [f"visual_encoder.blocks.{layer}"] if layer < DEPTH else []
        if layer < self.layers:
            here = f"text_encoder.encoder.layer.{layer}"
            holders += [here, f"{here}.attention.output", f"{here}.output"]
            holders += [f"{here}.crossattention.output"] if layer >= self.first_fusion else []
        for module in modules:
            kept = dict(self.state)
            if module.startswith("cross"):
                self._linear(f"{module}.down_proj", WIDTH, MID)
                for up in ("up_proj", "visual_up_proj", "multi_up_proj"):
                    self._linear(f"{module}.{up}", MID, WIDTH)
                self._linear(f"{module}.expert_weights", WIDTH, 3)
                # Else a temperature of 10 leaves the weights near a third each.
                self.state[f"{module}.expert_weights.weight"] *= 20
            else:
                self._linear(f"{module}.D_fc1", WIDTH, MID)
                self._linear(f"{module}.D_fc2", MID, WIDTH)
            made = {name: tensor for name, tensor in self.state.items() if name not in kept}
            self.state = kept
            for holder in holders:
                self.state |= {f"{holder}.modex.{name}": tensor for name, tensor in made.items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + epsilon).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:2], HEADS, -1).permute(0, 2, 1, 3)

        scores = heads(q) @ heads(k).mT / math.sqrt(WIDTH / HEADS)
        if mask is not None:
            scores = scores - 10000.0 * (~mask)[:, None, None, :].float()
        return (scores.softmax(dim=-1) @ heads(v)).permute(0, 2, 1, 3).reshape(q.shape)

    def modex(self, holder: str, module: str, x: Tensor) -> Tensor:
        """The adapter of a module; where the object has none of the kind, the identity."""
        name = f"{holder}.modex.{module}"
        if f"{name}.D_fc1.weight" in self.state:
            return x + self.linear(f"{name}.D_fc2", self.linear(f"{name}.D_fc1", x).clamp(min=0))
        if f"{name}.down_proj.weight" not in self.state:
            return x
        weights = (self.linear(f"{name}.expert_weights", x) / 10).softmax(dim=-1)
        hidden = self.linear(f"{name}.down_proj", x).clamp(min=0)
        for number, up in enumerate(("up_proj", "visual_up_proj", "multi_up_proj")):
            x = x + weights[..., number : number + 1] * self.linear(f"{name}.{up}", hidden)
        return x

    def image(self, images: Tensor) -> Tensor:
        weight, bias = (self.state[f"visual_encoder.patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
        x = functional.conv2d(images, weight, bias, stride=PATCH).flatten(2).mT
        x = torch.cat([self.state["visual_encoder.cls_token"].expand(len(x), -1, -1), x], dim=1)
        x = x + self.state["visual_encoder.pos_embed"]
        for layer in range(DEPTH):
            block = f"visual_encoder.blocks.{layer}"
            q, k, v = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6)).chunk(3, dim=-1)
            x = x + self.modex(block, "visual_msa", self.linear(f"{block}.attn.proj", self.attend(q, k, v, None)))
            hidden = functional.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            x = x + self.modex(block, "visual_ffn", self.linear(f"{block}.mlp.fc2", hidden))
        return self.norm("visual_encoder.norm", x, 1e-6)

    def embed(self, ids: Tensor) -> Tensor:
        words = self.state["text_encoder.embeddings.word_embeddings.weight"][ids]
        positions = self.state["text_encoder.embeddings.position_embeddings.weight"][: ids.shape[1]]
        return self.norm("text_encoder.embeddings.LayerNorm", words + positions, 1e-12)

    def text_layer(self, layer: int, x: Tensor, mask: Tensor, memory: Sequence[Tensor], *, text_mode: bool) -> Tensor:
        here = f"text_encoder.encoder.layer.{layer}"
        crosses = not text_mode and layer >= self.first_fusion
        x = self.modex(here, "cross_msa" if crosses else "textual_msa", x)

        def project(name: str, part: str, of: Tensor) -> Tensor:
            return self.linear(f"{here}.{name}.{part}", of)

        mixed = self.attend(*(project("attention.self", part, x) for part in ("query", "key", "value")), mask)
        branch = self.modex(f"{here}.attention.output", "textual_msa", project("attention.output", "dense", mixed))
        x = self.norm(f"{here}.attention.output.LayerNorm", branch + x, 1e-12)
        if crosses:
            branch = self.modex(f"{here}.crossattention.output", "cross_msa", self.cross(layer, here, x, memory))
            x = self.norm(f"{here}.crossattention.output.LayerNorm", branch + x, 1e-12)
        hidden = functional.gelu(project("intermediate", "dense", x))
        kind = "textual_ffn" if text_mode else "cross_ffn"
        branch = self.modex(f"{here}.output", kind, project("output", "dense", hidden))
        return self.norm(f"{here}.output.LayerNorm", branch + x, 1e-12)

    def cross(self, layer: int, here: str, x: Tensor, memory: Sequence[Tensor]) -> Tensor:
        name = f"{here}.crossattention"

        def one(number: str, image: Tensor) -> Tensor:
            q = self.linear(f"{name}.self{number}.query", x)
            k, v = (self.linear(f"{name}.self{number}.{part}", image) for part in ("key", "value"))
            return self.linear(f"{name}.output.dense{number}", self.attend(q, k, v, None))

        if not (self.pair and self.family == "blip"):
            return one("", memory[(layer - self.first_fusion) % len(memory)])
        both = [one("0", memory[0]), one("1", memory[1])]
        if layer < MERGE_FROM:
            return (both[0] + both[1]) / 2
        return self.linear(f"{name}.output.merge_layer", torch.cat(both, dim=-1))

    def text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Mode "text": ALBEF stops below the fusion layers."""
        x = self.embed(ids)
        for layer in range(self.first_fusion or self.layers):
            x = self.text_layer(layer, x, mask, (), text_mode=True)
        return x

    def fused(self, memory: Sequence[Tensor], ids: Tensor, mask: Tensor) -> Tensor:
        """Mode "multimodal", from the ids."""
        if self.family == "blip":
            ids = torch.cat([torch.full_like(ids[:, :1], VOCABULARY - 1), ids[:, 1:]], dim=1)
        x = self.embed(ids)
        for layer in range(self.layers):
            x = self.text_layer(layer, x, mask, memory, text_mode=False)
        return x


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
