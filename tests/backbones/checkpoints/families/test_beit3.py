"""Official BEiT-3 files: every kind fills the model, every other file is refused in one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mwa_lightning.backbones.checkpoints import load_backbone, official_state
from mwa_lightning.backbones.checkpoints.families.beit3 import beit3_key_map
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.backbones.positions import interpolate_positions
from mwa_lightning.errors import CheckpointError
from mwa_lightning.tasks.heads import RetrievalHeads
from mwa_lightning.tasks.reasoning_heads import MultiwayReasoningHeads, StatementShape

WIDTH, VOCABULARY = 16, 30
PAIR = StatementShape(images=2, classes=("False", "True"))
HEADS = ["language_head.weight", "vision_head.weight", "logit_scale"]


def make(image_size: int = 32, seed: int = 0, **options: Any) -> tuple[Multiway, RetrievalHeads]:
    torch.manual_seed(seed)
    sizes = {"width": WIDTH, "depth": 2, "vocabulary_size": VOCABULARY, "patch_size": 8} | options
    backbone = Multiway(
        name="probe", heads=4, ffn_width=4 * sizes["width"], image_size=image_size, text_positions=20,
        max_text_length=16, **sizes,
    )  # fmt: skip
    heads = RetrievalHeads(width=backbone.width)
    with torch.no_grad():
        for parameter in (*backbone.parameters(), *heads.parameters()):
            parameter.normal_()
    return backbone, heads


def write(path: Path, state: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state, "args": argparse.Namespace(lr=1e-4)}, path)
    return path


@pytest.fixture
def itc() -> dict[str, Tensor]:
    """What an official file for retrieval holds."""
    backbone, heads = make()
    return official_state(backbone, heads)


def parameters(*modules: torch.nn.Module) -> list[Tensor]:
    return [parameter for module in modules for parameter in module.parameters()]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_key_map__names_of_the_official_files() -> None:
    """The official rule, spelled out here once more; compared by hand with the lists of base and large."""
    expected = {
        "beit3.text_embed.weight", "beit3.vision_embed.proj.weight", "beit3.vision_embed.proj.bias",
        "beit3.vision_embed.cls_token", "beit3.vision_embed.mask_token",
        "beit3.encoder.embed_positions.A.weight", "beit3.encoder.embed_positions.B.weight", *HEADS,
    }  # fmt: skip
    modules = ["encoder.layer_norm.{e}"]
    for layer in range(12):
        prefix = f"encoder.layers.{layer}"
        modules += [f"{prefix}.self_attn.{part}.{{e}}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")]
        modules += [f"{prefix}.self_attn.inner_attn_ln.{{e}}"]
        modules += [f"{prefix}.{norm}.{{e}}" for norm in ("self_attn_layer_norm", "final_layer_norm")]
        modules += [f"{prefix}.ffn.{{e}}.{part}" for part in ("fc1", "fc2", "ffn_layernorm")]
    expected |= {f"beit3.{m.format(e=e)}.{kind}" for m in modules for e in "AB" for kind in ("weight", "bias")}
    names = beit3_key_map(12).names
    # 494 tensors have the files of retrieval, 499 those of NLVR2, with another head.
    head = {f"head.{part}.{kind}" for part in ("norm1", "dense1", "norm2", "dense2") for kind in ("weight", "bias")}
    assert names.keys() == expected | head
    assert (len(expected), len(expected - set(HEADS) | head)) == (494, 499)
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("file", ["itc.pth", "itc.safetensors"])
def test_load_backbone__image_text_contrastive_file_fills_everything(
    tmp_path: Path, itc: dict[str, Tensor], file: str
) -> None:
    backbone, heads = make(seed=1)
    report = load_backbone(backbone, heads, write(tmp_path / file, itc))
    assert equal(parameters(backbone, heads), parameters(*make()))
    assert (set(report.used), report.dropped, report.new, report.interpolated) == (set(itc), (), (), None)


def test_load_backbone__pretrained_file_lacks_heads_and_has_those_of_masked_modelling(
    tmp_path: Path, itc: dict[str, Tensor]
) -> None:
    state = {key: tensor for key, tensor in itc.items() if key not in HEADS}
    masked = {f"{head}.{kind}": torch.zeros(3) for head in ("mlm_head", "mim_head") for kind in ("weight", "bias")}
    backbone, heads = make(seed=1)
    kept = [parameter.detach().clone() for parameter in heads.parameters()]
    report = load_backbone(backbone, heads, write(tmp_path / "pretrained.pth", state | masked))
    assert report.dropped == tuple(masked)
    assert set(report.new) == {"heads.vision.weight", "heads.text.weight", "heads.logit_scale"}
    assert equal(parameters(backbone), parameters(make()[0]))
    assert equal(list(heads.parameters()), kept)
    assert "not needed: mlm_head.weight" in str(report)
    assert "freshly drawn: heads." in str(report)


def test_load_backbone__nlvr2_head_and_adapters_of_the_released_code_are_dropped_by_name(
    tmp_path: Path, itc: dict[str, Tensor]
) -> None:
    extra = [f"head.{part}.{kind}" for part in ("norm1", "dense1", "norm2", "dense2") for kind in ("weight", "bias")]
    extra += [f"beit3.encoder.layers.0.{part}.weight" for part in ("adaptmlp_text.up_proj", "enhancemlp.fc1")]
    report = load_backbone(*make(), write(tmp_path / "a.pth", itc | {key: torch.zeros(1) for key in extra}))
    assert report.dropped == tuple(extra)


def test_load_backbone__a_file_of_another_task_gives_what_fits(tmp_path: Path, itc: dict[str, Tensor]) -> None:
    backbone, heads = make(seed=1)[0], MultiwayReasoningHeads(width=WIDTH, shape=PAIR)
    report = load_backbone(backbone, heads, write(tmp_path / "itc.pth", itc))
    assert set(report.dropped) == set(HEADS)
    names = {f"heads.{name}" for name, _ in heads.named_parameters()}
    assert set(report.new) == names
    assert equal(parameters(backbone), parameters(make()[0]))
    # Its own file is read whole; for three classes or one image the head is a new one.
    nlvr2 = write(tmp_path / "nlvr2.pth", official_state(backbone, heads))
    same = MultiwayReasoningHeads(width=WIDTH, shape=PAIR)
    assert load_backbone(backbone, same, nlvr2).new == ()
    assert equal(list(same.parameters()), list(heads.parameters()))
    for shape in (PAIR._replace(classes=("a", "b", "c")), PAIR._replace(images=1)):
        report = load_backbone(backbone, MultiwayReasoningHeads(width=WIDTH, shape=shape), nlvr2)
        assert set(report.new) == names
        assert len(report.dropped) == len(names)


def test_load_backbone__without_heads_theirs_are_dropped(tmp_path: Path, itc: dict[str, Tensor]) -> None:
    report = load_backbone(make()[0], None, write(tmp_path / "itc.pth", itc))
    assert set(report.dropped) == set(HEADS)
    assert report.new == ()


@pytest.mark.parametrize(("before", "after"), [(32, 48), (48, 32), (32, 8)])
def test_load_backbone__other_resolution_interpolates_and_keeps_the_fingerprint(
    tmp_path: Path, before: int, after: int
) -> None:
    source, heads = make(before)
    path = write(tmp_path / "itc.pth", official_state(source, heads))
    target, same = make(after, seed=1)[0], make(before, seed=2)[0]
    report = load_backbone(target, None, path)
    assert report.interpolated == (before // 8, after // 8)
    expected = interpolate_positions(source.vision_embedding.positions.detach(), after // 8, rows_before=3)
    assert torch.equal(target.vision_embedding.positions, expected)
    load_backbone(same, None, path)
    assert target.fingerprint == same.fingerprint == report.fingerprint
    assert len(report.fingerprint) == 64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_load_backbone__half_precision_file_is_cast(tmp_path: Path, itc: dict[str, Tensor], dtype: torch.dtype) -> None:
    backbone, heads = make(48, seed=1)
    load_backbone(backbone, heads, write(tmp_path / "half.pth", {k: v.to(dtype) for k, v in itc.items()}))
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
    assert torch.equal(heads.vision.weight, itc["vision_head.weight"].to(dtype).float())


def test_load_backbone__fingerprint_follows_the_backbone_alone(tmp_path: Path, itc: dict[str, Tensor]) -> None:
    def fingerprint(changes: dict[str, Tensor], precision: torch.dtype = torch.float32) -> str:
        backbone, heads = make(seed=1)
        load_backbone(backbone.to(precision), heads, write(tmp_path / "x.pth", itc | changes))
        return backbone.fingerprint

    first = fingerprint({})
    assert fingerprint({"vision_head.weight": torch.zeros(WIDTH, WIDTH)}) == first
    assert fingerprint({}, torch.bfloat16) == first
    changed = itc["beit3.encoder.layers.1.ffn.B.fc1.bias"].clone()
    changed[0] += 1e-3
    assert fingerprint({"beit3.encoder.layers.1.ffn.B.fc1.bias": changed}) != first


def without(*keys: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {key: tensor for key, tensor in state.items() if key not in keys}


def with_tensors(**tensors: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: state | {key.replace("__", "."): tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("beit3.encoder.layer_norm.A.weight"), "missing: beit3.encoder.layer_norm.A.weight"),
        (without("logit_scale"), "missing: logit_scale"),
        (with_tensors(head__weight=torch.zeros(1)), "not known: head.weight"),
        (
            with_tensors(beit3__encoder__layers__0__ffn__A__fc1__bias=torch.zeros(3)),
            r"fc1.bias \(3,\) for \(64,\)",
        ),
        (
            with_tensors(beit3__encoder__embed_positions__A__weight=torch.zeros(18, WIDTH)),
            "15 rows .*no square",
        ),
        (lambda state: {"visual.proj": torch.zeros(2)}, "not a BEiT-3 checkpoint .*it has visual.proj"),
        (lambda state: {"adapter.enhancers.0.x": torch.zeros(2)}, "give it as adapter.checkpoint"),
    ],
)
def test_load_backbone__file_that_does_not_fit_is_named_and_changes_nothing(
    tmp_path: Path,
    itc: dict[str, Tensor],
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    said: str,
) -> None:
    backbone, heads = make(seed=1)
    path = write(tmp_path / "other.pth", change(itc))
    with pytest.raises(CheckpointError, match=said) as caught:
        load_backbone(backbone, heads, path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert equal(parameters(backbone, heads), parameters(*make(seed=1)))
    assert backbone.fingerprint == "random"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"width": 32},
            "has width 16, depth 2, vocabulary 30, .* configured with width 32, depth 2, vocabulary 30",
        ),
        ({"depth": 3}, "has width 16, depth 2, .* configured with width 16, depth 3"),
        ({"vocabulary_size": 31}, "vocabulary 30, .* vocabulary 31"),
        ({"patch_size": 16}, "patches of 8 px, .* patches of 16 px"),
    ],
)
def test_load_backbone__another_model_is_told_by_its_sizes(
    tmp_path: Path, itc: dict[str, Tensor], options: dict[str, int], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        load_backbone(*make(**options), write(tmp_path / "itc.pth", itc))
