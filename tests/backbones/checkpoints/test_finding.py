"""A model is found in whatever a training script saved, and is the same to the last byte wherever it lay."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from mwa_lightning.backbones.checkpoints import load_backbone
from mwa_lightning.errors import CheckpointError
from tests.backbones.checkpoints.files import KINDS, as_file, make

CONTAINERS = ["state_dict", "model_state_dict", "model", "module", "net", "weights", "params", "ema", "my best", None]
PREFIXES = ["module.", "_orig_mod.", "model.", "clip.", "backbone.", "encoder.model.", "_forward_module."]
WITHIN = ["_fsdp_wrapped_module", "_orig_mod", "module", "_checkpoint_wrapped_module"]
MODELS = {kind: make(kind) for kind in ("clip", "siglip", "beit3", "blip", "albef")}
PLAIN = {name: as_file(form, *MODELS[kind]) for name, (kind, form) in KINDS.items()}


def bytes_of(*modules: nn.Module) -> dict[str, bytes]:
    return {
        f"{number}.{name}": parameter.detach().numpy().tobytes()
        for number, module in enumerate(modules)
        for name, parameter in module.named_parameters()
    }


def loaded(kind: str, path: Path, **options: Any) -> tuple[dict[str, bytes], str]:
    backbone, heads = make(kind)
    report = load_backbone(backbone, heads, path, **options)
    return bytes_of(backbone, heads), report.fingerprint


@pytest.mark.parametrize("name", sorted(KINDS))
def test_load_backbone__the_file_itself(tmp_path: Path, name: str) -> None:
    kind, _ = KINDS[name]
    save_file(PLAIN[name], tmp_path / "model.safetensors")
    found, _ = loaded(kind, tmp_path / "model.safetensors")
    wanted = bytes_of(*MODELS[kind])
    # The temperature of BLIP and ALBEF is the exponential of ours.
    assert {key for key in wanted if wanted[key] != found[key]} <= {"1.logit_scale"}


def test_kinds__are_all_here() -> None:
    assert [name.rpartition("-")[0] for name in KINDS] == [
        "beit3-BEiT-3", "blip-BLIP", "blip-BLIP (transformers)", "albef-ALBEF", "clip-CLIP", "clip-OpenCLIP",
        "clip-OpenCLIP", "siglip-SigLIP", "siglip-OpenCLIP's SigLIP",
    ]  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(KINDS)),
    prefixes=st.lists(st.sampled_from(PREFIXES), max_size=3),
    within=st.lists(st.tuples(st.sampled_from(WITHIN), st.integers(0, 3)), max_size=2),
    containers=st.lists(st.sampled_from(CONTAINERS), max_size=3),
    form=st.sampled_from(["zip", "pickle", "safetensors"]),
)
def test_load_backbone__any_nesting_of_prefixes_and_containers(
    tmp_path: Path,
    name: str,
    prefixes: list[str],
    within: list[tuple[str, int]],
    containers: list[str | None],
    form: str,
) -> None:
    kind, _ = KINDS[name]
    state = {}
    for key, tensor in PLAIN[name].items():
        parts = key.split(".")
        for wrapper, place in within:
            parts.insert(min(place, len(parts) - 1), wrapper)
        state["".join(prefixes) + ".".join(parts)] = tensor
    path = tmp_path / "weights"
    if form == "safetensors":
        save_file(state, path)
    else:
        content: Any = {**state, "note": "beside the tensors", "step": 3}
        for container in containers:
            content = [content, 0.5] if container is None else {
                "epoch": 3, "args": argparse.Namespace(lr=1e-3), container: content,
                "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
            }  # fmt: skip
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    plain = tmp_path / "plain.pt"
    torch.save(PLAIN[name], plain)
    assert loaded(kind, path) == loaded(kind, plain)


def other(name: str) -> dict[str, Tensor]:
    return {key: tensor + 1 for key, tensor in PLAIN[name].items()}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


CLIP = next(name for name in KINDS if name.startswith("clip-OpenCLIP"))


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        (lambda one, two: {"model": one, "model_ema": two}, None),  # the official code of BEiT-3 takes `model`
        (lambda one, two: {"module": two, "model": one}, None),
        (lambda one, two: {"state_dict_ema": two, "state_dict": one}, None),  # timm
        (lambda one, two: {"model_ema": one, "model": two}, "model_ema"),
        (lambda one, two: {"state_dict": under("teacher.", one) | under("student.", two)}, "state_dict.teacher"),
        (lambda one, two: under("net.", one) | under("net.momentum.", two), "net"),
        (lambda one, two: one | {"ema": two}, None),  # the file itself, which no key can name
        (lambda one, two: [two, {"w": one}], "1.w"),
        (lambda one, two: {"a": one, "b": dict(one)}, None),  # the same twice
    ],
)
def test_load_backbone__several_models(tmp_path: Path, content: Callable[[Any, Any], Any], taken: str | None) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content(PLAIN[CLIP], other(CLIP)), path)
    assert loaded("clip", path, key=taken)[0] == bytes_of(*MODELS["clip"])


def test_load_backbone__several_models_of_which_none_is_usual_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": under("student.", PLAIN[CLIP]) | under("teacher.", other(CLIP))}, path)
    with pytest.raises(CheckpointError) as caught:
        loaded("clip", path)
    assert str(caught.value) == (
        f"{path}: holds several models, state_dict.student, state_dict.teacher; say which by "
        "backbone.checkpoint_key=state_dict.student"
    )
    with pytest.raises(CheckpointError, match=r"checkpoint_key=ema names no model in it; it has: state_dict\.s"):
        loaded("clip", path, key="ema")


def test_load_backbone__what_else_a_module_held_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    torch.save({"state_dict": under("model.", PLAIN[CLIP]) | {"criterion.weight": torch.ones(3)}}, path)
    report = load_backbone(*make("clip"), path)
    assert report.dropped == ("criterion.weight",)


def test_load_backbone__tensor_that_is_not_known_is_still_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    torch.save({"state_dict": under("model.", PLAIN[CLIP] | {"visual.more.weight": torch.ones(3)})}, path)
    with pytest.raises(CheckpointError, match=r"not known: visual\.more\.weight"):
        loaded("clip", path)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["vision_model.embeddings.patch_embedding.weight", "vision_model.post_layernorm.weight"], "the image half"),
        (["vision_model.embeddings.class_embedding"], "the image half"),
        (["text_model.embeddings.token_embedding.weight"], "the text half"),
        (["visual.conv1.weight", "visual.class_embedding"], "the image half"),
        (["token_embedding.weight", "ln_final.weight"], "the text half of a CLIP"),
        (["class_embedding", "conv1.weight"], "a vision transformer alone"),
        (["patch_embed.proj.weight", "cls_token", "blocks.0.attn.qkv.weight"], "a vision transformer alone"),
        (["embeddings.cls_token", "encoder.layer.0.norm1.weight"], "a vision transformer alone"),
        (["bert.embeddings.word_embeddings.weight"], "a text encoder alone"),
        (["visual.layer1.0.conv1.weight", "visual.attnpool.c_proj.weight"], "CLIP with a ResNet"),
        (["visual.blocks.0.attn.q_proj.weight", "text.token_embedding.weight"], "EVA-CLIP"),
        (["visual.trunk.stem.0.weight", "text.token_embedding.weight"], "another image encoder of timm"),
        (["visual.conv1.weight", "text.transformer.embeddings.word_embeddings.weight"], "another text encoder"),
        (["visual.conv1.weight", "text_decoder.resblocks.0.ln_1.weight"], "CoCa"),
        (["text_model.encoder.layer.0.x", "vision_model.embeddings.class_embedding"], "a CLIP with BERT"),
        (["model.vision_tower.vision_model.embeddings.class_embedding", "lm_head.weight"], "LLaVA"),
        (["visual_encoder.patch_embed.proj.weight", "text_decoder.bert.x"], "a BLIP for captions, which has no text"),
        (["vision_model.embeddings.class_embedding", "text_decoder.bert.x"], "a BLIP for captions, which has no text"),
        (["visual_encoder.cls_token", "text_encoder.encoder.layer.0.x"], "a model that is built otherwise"),
        (["layers.0._fsdp_wrapped_module._flat_param"], "flat parameters of FSDP"),
        (["qformer.layernorm.weight", "vision_model.embeddings.class_embedding"], "BLIP-2"),
        (["base_model.model.x.q_proj.lora_A.weight"], "an adapter of PEFT"),
        (["adapter.enhancers.0.x", "heads.vision.weight"], "an adapter of this package"),
        (["model.adapter.enhancers.0.x", "model.heads.vision.weight"], "a checkpoint of a run of this package"),
        (["layer1.0.conv1.weight"], "a ResNet"),
        (["model.embed_tokens.weight"], "a language model"),
        (["unheard_of"], "give an official file"),
    ],
)
def test_load_backbone__model_of_another_family_is_named(tmp_path: Path, keys: list[str], said: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({key: torch.zeros(2, 2, 2, 2) for key in keys}, path)
    for kind in ("clip", "siglip", "beit3", "blip"):
        with pytest.raises(CheckpointError) as caught:
            loaded(kind, path)
        message = str(caught.value)
        assert said in message, message
        assert "\n" not in message


def test_load_backbone__file_of_another_family_of_ours_names_a_backbone(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    backbones = {"BEiT-3": "beit3_base", "CLIP": "clip", "OpenCLIP": "clip", "SigLIP": "siglip", "BLIP": "blip_base"}
    backbones |= {"OpenCLIP's SigLIP": "siglip", "ALBEF": "albef_base"}
    for name, (kind, form) in KINDS.items():
        torch.save({"model": PLAIN[name]}, path)
        ours, kinds = ("beit3", "BEiT-3") if kind != "beit3" else ("blip", "BLIP or ALBEF")
        with pytest.raises(CheckpointError) as caught:
            loaded(ours, path)
        assert str(caught.value).startswith(
            f"{path}: not a {kinds} checkpoint of images and texts; it is of {form.kind}: choose a backbone of that "
            f"kind, such as {backbones[form.kind]} (it has "
        )


def test_load_backbone__naflex_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    name = next(name for name in KINDS if name.startswith("siglip-SigLIP"))
    patches = "vision_model.embeddings.patch_embedding.weight"
    save_file(PLAIN[name] | {patches: PLAIN[name][patches].flatten(1)}, path)
    with pytest.raises(CheckpointError, match=r"SigLIP 2 NaFlex.*google/siglip2-base-patch16-224"):
        loaded("siglip", path)
