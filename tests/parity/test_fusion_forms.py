"""ALBEF, and BLIP and ALBEF for two images, against the plain code, from files with official names; 1e-5 in fp32.

No code that installs beside ours has these forms. plain_bert.py says why the plain code can be trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mwa_lightning.backbones.checkpoints import load_backbone
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.tasks.heads import FusionRetrievalHeads, retrieval_heads
from tests.parity.plain_bert import Kind, Plain, State, official_state

TOLERANCE = 1e-5
SIZES = {"width": 64, "text_width": 48, "depth": 2, "layers": 4, "patch": 8, "grid": 3}
BASE = {"width": 768, "text_width": 768, "depth": 1, "layers": 2, "patch": 16, "grid": 3}
# As deep as blip_base and albef_base are.
FULL_DEPTH = BASE | {"depth": 12, "layers": 12}
REST = {"vocabulary": 90, "positions": 20, "embedding": 24}
HEADS = 4

Error = Callable[[Tensor, Tensor], float]


class Form:
    """A kind of fusion encoder in a form, as a file with official names, in plain code, and as ours."""

    def __init__(self, kind: Kind, *, pair: bool, seed: int, sizes: dict[str, int] = SIZES, types: bool = True) -> None:
        blip = kind == "blip"
        self.kind, self.pair, self.types = kind, pair, types and not blip
        self.sizes = sizes
        # The lowest BLIP layers average the two images, the upper merge them.
        self.merge_from = sizes["layers"] // 2
        self.state = official_state(
            kind, pair=pair, merge_from=self.merge_from, token_types=self.types, seed=seed, **sizes, **REST
        )

    def plain(self) -> Plain:
        return Plain(self.state, vision_heads=HEADS, text_heads=HEADS)

    def ours(self, path: Path, *, state: State | None = None) -> tuple[FusionEncoder, nn.Module, Any]:
        sizes, blip = self.sizes, self.kind == "blip"
        # Drawing the initial weights of a deep one would take most of the time, and its file fills them all.
        with torch.device("meta" if sizes is FULL_DEPTH else "cpu"):
            backbone = FusionEncoder(
                name="parity", vision_width=sizes["width"], vision_depth=sizes["depth"], vision_heads=HEADS,
                vision_ffn_width=4 * sizes["width"], patch_size=sizes["patch"],
                image_size=sizes["patch"] * sizes["grid"], text_width=sizes["text_width"], text_heads=HEADS,
                text_ffn_width=4 * sizes["text_width"],
                text_layers=sizes["layers"] if blip else sizes["layers"] // 2,
                fusion_layers=0 if blip else sizes["layers"] // 2, encoder_token=-1 if blip else None,
                token_types=0 if blip else 2, pair=self.pair, merge_from=self.merge_from, max_text_length=16,
                vocabulary_size=REST["vocabulary"], text_positions=REST["positions"], embedding_width=REST["embedding"],
            )  # fmt: skip
            width = sizes["text_width"]
            head = nn.ModuleDict({"hidden": nn.Linear(width, width), "output": nn.Linear(width, 2)})
            heads = head if self.pair else retrieval_heads(backbone)
        if sizes is FULL_DEPTH:
            backbone, heads = backbone.to_empty(device="cpu"), heads.to_empty(device="cpu")
        torch.save({"model": self.state if state is None else state}, path)
        return backbone.eval(), heads.eval(), load_backbone(backbone, heads, path)

    @property
    def images(self) -> int:
        return 2 if self.pair else 1

    @property
    def encoder_token(self) -> int | None:
        return REST["vocabulary"] - 1 if self.kind == "blip" else None

    def inputs(self) -> tuple[list[Tensor], Tensor, Tensor]:
        """Normalised images, ids, and the mask of texts of several lengths."""
        generator = torch.Generator().manual_seed(7)
        side = self.sizes["patch"] * self.sizes["grid"]
        images = [torch.randn(3, 3, side, side, generator=generator) for _ in range(self.images)]
        ids = torch.randint(REST["vocabulary"], (3, 9), generator=generator)
        return images, ids, torch.arange(9) < torch.tensor([9, 5, 2])[:, None]

    def run_plain(self) -> dict[str, Tensor]:
        images, ids, mask = self.inputs()
        plain = self.plain()
        texts = [one[real] for one, real in zip(ids, mask, strict=True)]
        seen = [[plain.image(one) for one in batch] for batch in images]
        fused = [
            plain.fused(text, [batch[sample] for batch in seen], encoder_token=self.encoder_token)
            for sample, text in enumerate(texts)
        ]
        found = {"image": torch.stack(seen[0]), "fused": torch.cat(fused)}
        if self.pair:
            return found | {"classes": torch.stack([plain.classify(tokens) for tokens in fused])}
        alone = [plain.text(text) for text in texts]
        return found | {
            "text": torch.cat(alone),
            "matched": torch.stack([plain.linear("itm_head", tokens[0]) for tokens in fused]),
            "scores": torch.stack([unit(plain.linear("vision_proj", tokens[0])) for tokens in seen[0]])
            @ torch.stack([unit(plain.linear("text_proj", tokens[0])) for tokens in alone]).T
            / self.state["temp"],
        }

    def run_ours(self, backbone: FusionEncoder, heads: nn.Module) -> dict[str, Tensor]:
        images, ids, mask = self.inputs()
        with torch.no_grad():
            seen = [backbone.encode_image(batch) for batch in images]
            fused = backbone.fuse(seen, ids, mask)
            found = {"image": seen[0], "fused": fused[mask]}
            if isinstance(heads, nn.ModuleDict):
                return found | {"classes": heads["output"](heads["hidden"](fused[:, 0]).relu())}
            assert isinstance(heads, FusionRetrievalHeads)
            text = backbone.encode_text(ids, mask)
            cosines = heads.embed_image(seen[0]) @ heads.embed_text(text, mask).T
            return found | {
                "text": text[mask],
                "matched": heads.match(fused),
                "scores": cosines * heads.logit_scale.exp(),
            }


def unit(vector: Tensor) -> Tensor:
    return vector / vector.square().sum().sqrt()


FORMS: list[tuple[Kind, bool]] = [("blip", False), ("blip", True), ("albef", False), ("albef", True)]
IDS = ["blip", "blip_pair", "albef", "albef_pair"]


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(SIZES, id="small"),
        pytest.param(BASE, id="base_width"),
        pytest.param(FULL_DEPTH, id="base", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(("kind", "pair"), FORMS, ids=IDS)
def test_outputs__equal_the_plain_code(
    tmp_path: Path, relative_error: Error, kind: Kind, pair: bool, sizes: dict[str, int]
) -> None:
    form = Form(kind, pair=pair, seed=1, sizes=sizes)
    backbone, heads, report = form.ours(tmp_path / "model.pth")
    assert report.new == ()
    found = form.run_ours(backbone, heads)
    for name, expected in form.run_plain().items():
        assert relative_error(found[name], expected) < TOLERANCE, name


@pytest.mark.parametrize(("kind", "pair"), FORMS, ids=IDS)
def test_outputs__depend_on_every_mapped_tensor(tmp_path: Path, relative_error: Error, kind: Kind, pair: bool) -> None:
    form = Form(kind, pair=pair, seed=2)
    backbone, heads, _ = form.ours(tmp_path / "model.pth")
    expected = form.run_plain()
    generator = torch.Generator().manual_seed(9)
    unnoticed = []
    for name, parameter in [*backbone.named_parameters(), *heads.named_parameters()]:
        kept = parameter.detach().clone()
        with torch.no_grad():
            # An alteration as large as what a tensor holds: attention hardly sees less in the last of these layers.
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        found = form.run_ours(backbone, heads)
        if max(relative_error(found[kind], expected[kind]) for kind in expected) < TOLERANCE:
            unnoticed.append(name)
        with torch.no_grad():
            parameter.copy_(kept)
    # Softmax does not see what is added to all of its logits alike.
    assert [name for name in unnoticed if not (".key." in name and name.endswith(".bias"))] == []


def test_albef__file_without_token_types(tmp_path: Path, relative_error: Error) -> None:
    """LAVIS's files have none: nothing is added then."""
    form = Form("albef", pair=False, seed=3, types=False)
    backbone, heads, report = form.ours(tmp_path / "model.pth")
    assert report.new == ("text_embedding.token_types",)
    assert relative_error(form.run_ours(backbone, heads)["fused"], form.run_plain()["fused"]) < TOLERANCE


def test_albef__file_of_pretraining_has_bert_below_its_task(tmp_path: Path) -> None:
    form = Form("albef", pair=False, seed=3)
    below = {key.replace("text_encoder.", "text_encoder.bert."): value for key, value in form.state.items()}
    below["text_encoder.cls.predictions.bias"] = torch.zeros(3)
    plain = dict(form.ours(tmp_path / "plain.pth")[0].named_parameters())
    backbone, _, report = form.ours(tmp_path / "below.pth", state=below)
    assert "text_encoder.cls.predictions.bias" in report.dropped
    for name, parameter in backbone.named_parameters():
        assert torch.equal(parameter, plain[name]), name


def as_upstream(kind: Kind, state: State, *, first: int) -> State:
    """What the original code makes of a file for one image where it wants the form for two."""
    made: State = {}
    for key, tensor in state.items():
        if kind == "blip" and "crossattention.self." in key:
            made |= {key.replace("self", f"self{image}"): tensor for image in "01"}
        elif kind == "blip" and "crossattention.output.dense." in key:
            made |= {key.replace("dense", f"dense{image}"): tensor for image in "01"}
        elif kind == "albef" and key.startswith("text_encoder.encoder.layer."):
            parts = key.split(".")
            layer = int(parts[3])
            places = [layer] if layer < first else [first + 2 * (layer - first) + image for image in range(2)]
            made |= {".".join([*parts[:3], str(place), *parts[4:]]): tensor for place in places}
        else:
            made[key] = tensor
    return made


@pytest.mark.parametrize("kind", ["blip", "albef"])
def test_pair_form__from_a_file_for_one_image(tmp_path: Path, relative_error: Error, kind: Kind) -> None:
    """What fits is used as upstream does, what is new is named: BLIP's merging layers, and the head."""
    single, pair = Form(kind, pair=False, seed=4), Form(kind, pair=True, seed=5)
    backbone, heads, report = pair.ours(tmp_path / "retrieval.pth", state=single.state)
    new = {f"heads.{name}" for name, _ in heads.named_parameters()}
    if kind == "blip":
        layers = range(pair.merge_from, SIZES["layers"])
        new |= {f"text_blocks.{n}.cross_attention.merge.{part}" for n in layers for part in ("weight", "bias")}
    assert set(report.new) == new
    assert {"itm_head.weight", "vision_proj.weight", "temp"} <= set(report.dropped)
    merging = {
        f"text_encoder.encoder.layer.{name.split('.')[1]}.crossattention.output.merge_layer.{name.split('.')[-1]}": p
        for name, p in backbone.named_parameters()
        if ".merge." in name
    }
    head = {
        f"cls_head.{place}.{part}": getattr(heads[layer], part)  # type: ignore[index]
        for place, layer in ((0, "hidden"), (2, "output"))
        for part in ("weight", "bias")
    }
    pair.state = as_upstream(kind, single.state, first=SIZES["layers"] // 2) | merging | head
    with torch.no_grad():
        expected = pair.run_plain()
    found = pair.run_ours(backbone, heads)
    for name in expected:
        assert relative_error(found[name], expected[name]) < TOLERANCE, name
