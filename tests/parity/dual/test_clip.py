"""CLIP against transformers, read from both kinds of files: images, texts and logits, to 1e-5 in fp32.

Every tensor is drawn at random, texts are padded, and errors are relative to the spread of the output. That each
tensor counts is shown by altering one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mwa_lightning.backbones.checkpoints import load_backbone
from mwa_lightning.backbones.checkpoints.families.clip import transformers_key_map
from tests.parity.dual.dual_encoders import (
    BASE,
    SMALL,
    TWO_LAYERS,
    Error,
    assert_equal,
    make_inputs,
    make_ours,
    run_ours,
    run_theirs,
    unnoticed_alterations,
)

pytestmark = pytest.mark.parity("transformers")

FORM = {"form": "clip", "activation": "quick_gelu", "norm_epsilon": 1e-5}
Randomize = Callable[..., None]


def make_theirs(sizes: dict[str, Any], randomize: Randomize, *, seed: int, activation: str = "quick_gelu") -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    def tower(stream: str) -> dict[str, Any]:
        return {
            "hidden_size": sizes[f"{stream}_width"],
            "num_hidden_layers": sizes[f"{stream}_depth"],
            "num_attention_heads": sizes[f"{stream}_heads"],
            "intermediate_size": sizes[f"{stream}_ffn_width"],
            "hidden_act": activation,
            "layer_norm_eps": 1e-5,
        }

    last = sizes["vocabulary_size"] - 1
    text = {"vocab_size": last + 1, "max_position_embeddings": sizes["text_positions"], "eos_token_id": last}
    model = CLIPModel(
        CLIPConfig(
            vision_config=tower("vision") | {"image_size": sizes["image_size"], "patch_size": sizes["patch_size"]},
            text_config=tower("text") | text | {"bos_token_id": last, "pad_token_id": last},
            projection_dim=sizes["embedding_width"],
        )
    ).eval()
    randomize(model, width=max(sizes["vision_width"], sizes["text_width"]), seed=seed)
    return model


def transformers_file(path: Path, reference: nn.Module) -> Path:
    """As older versions of transformers wrote it: with the counted positions."""
    state = dict(reference.state_dict())
    state["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    torch.save(state, path)
    return path


def open_clip_file(path: Path, reference: nn.Module) -> Path:
    """The names and the layout of OpenAI's module: written down here, independently of the key map."""
    source = dict(reference.state_dict())
    state: dict[str, Tensor] = {
        "visual.class_embedding": source["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": source["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": source["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": source["visual_projection.weight"].T,
        "positional_embedding": source["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": source["text_model.embeddings.token_embedding.weight"],
        "text_projection": source["text_projection.weight"].T,
        "logit_scale": source["logit_scale"],
        "attn_mask": torch.zeros(12, 12),
    }
    for kind in ("weight", "bias"):
        state[f"visual.ln_pre.{kind}"] = source[f"vision_model.pre_layrnorm.{kind}"]
        state[f"visual.ln_post.{kind}"] = source[f"vision_model.post_layernorm.{kind}"]
        state[f"ln_final.{kind}"] = source[f"text_model.final_layer_norm.{kind}"]
        for theirs, before in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
            layer = 0
            while f"{theirs}.encoder.layers.{layer}.mlp.fc1.bias" in source:
                old, new = f"{theirs}.encoder.layers.{layer}", f"{before}.resblocks.{layer}"
                state[f"{new}.attn.in_proj_{kind}"] = torch.cat(
                    [source[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                )
                state[f"{new}.attn.out_proj.{kind}"] = source[f"{old}.self_attn.out_proj.{kind}"]
                state[f"{new}.ln_1.{kind}"] = source[f"{old}.layer_norm1.{kind}"]
                state[f"{new}.ln_2.{kind}"] = source[f"{old}.layer_norm2.{kind}"]
                state[f"{new}.mlp.c_fc.{kind}"] = source[f"{old}.mlp.fc1.{kind}"]
                state[f"{new}.mlp.c_proj.{kind}"] = source[f"{old}.mlp.fc2.{kind}"]
                layer += 1
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
    return path


@pytest.mark.parametrize(
    ("sizes", "seed", "activation"),
    [
        pytest.param(SMALL, 0, "quick_gelu", id="small"),
        pytest.param(SMALL, 1, "gelu", id="small_gelu"),
        pytest.param(BASE | TWO_LAYERS, 2, "quick_gelu", id="base_width"),
        pytest.param(BASE, 3, "quick_gelu", id="base", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", ["transformers", "open_clip"])
def test_outputs__equal_transformers(
    tmp_path: Path,
    randomize: Randomize,
    relative_error: Error,
    sizes: dict[str, Any],
    seed: int,
    activation: str,
    kind: str,
) -> None:
    reference = make_theirs(sizes, randomize, seed=seed, activation=activation)
    backbone, heads = make_ours(**(FORM | sizes | {"activation": activation}))
    if kind == "transformers":
        report = load_backbone(backbone, heads, transformers_file(tmp_path / "pytorch_model.bin", reference))
        dropped = {"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"}
    else:
        report = load_backbone(backbone, heads, open_clip_file(tmp_path / "open_clip.safetensors", reference))
        dropped = {"attn_mask"}
    assert (set(report.dropped), report.new) == (dropped, ())
    inputs = make_inputs(sizes)
    expected = run_theirs(reference, inputs, mask=True)
    assert_equal(run_ours(backbone, heads, inputs, mask=True), expected, relative_error)


def test_outputs__equal_transformers_at_another_resolution(
    tmp_path: Path, randomize: Randomize, relative_error: Error
) -> None:
    reference = make_theirs(SMALL, randomize, seed=4)
    path = transformers_file(tmp_path / "pytorch_model.bin", reference)
    larger = SMALL | {"image_size": 56}
    backbone, heads = make_ours(**FORM, **larger)
    assert load_backbone(backbone, heads, path).interpolated == (4, 7)
    inputs = make_inputs(larger)
    expected = run_theirs(reference, inputs, mask=True, interpolate_pos_encoding=True)
    assert_equal(run_ours(backbone, heads, inputs, mask=True), expected, relative_error)


def test_outputs__do_not_depend_on_the_length_of_padding(
    tmp_path: Path, randomize: Randomize, relative_error: Error
) -> None:
    reference = make_theirs(SMALL, randomize, seed=5)
    backbone, heads = make_ours(**FORM, **SMALL)
    load_backbone(backbone, heads, transformers_file(tmp_path / "pytorch_model.bin", reference))
    images, ids, real = (part[1:] for part in make_inputs(SMALL))
    longest = int(real.sum(dim=1).max())
    assert longest < ids.shape[1]
    short = run_ours(backbone, heads, (images, ids[:, :longest], real[:, :longest]), mask=True)
    assert relative_error(short["text"], run_ours(backbone, heads, (images, ids, real), mask=True)["text"]) < 1e-6


def test_outputs__depend_on_every_mapped_tensor(tmp_path: Path, randomize: Randomize, relative_error: Error) -> None:
    reference = make_theirs(SMALL, randomize, seed=8)
    backbone, heads = make_ours(**FORM, **SMALL)
    load_backbone(backbone, heads, transformers_file(tmp_path / "pytorch_model.bin", reference))
    inputs = make_inputs(SMALL)
    expected = run_theirs(reference, inputs, mask=True)
    key_map = transformers_key_map(backbone)
    unnoticed = unnoticed_alterations(backbone, heads, key_map, inputs, expected, relative_error, mask=True)
    # A bias of the keys adds the same to all logits of a query: the softmax takes it out. Compared as they are instead.
    assert unnoticed == {
        name for name, _ in backbone.named_parameters() if ".attention.key." in name and "bias" in name
    }
    theirs = {ours: reference.state_dict()[key] for key, ours in key_map.names.items()}
    assert all(torch.equal(backbone.get_parameter(name), theirs[name]) for name in unnoticed)
