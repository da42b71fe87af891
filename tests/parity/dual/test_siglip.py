"""SigLIP (and SigLIP 2 of fixed resolution, the same model) against transformers, to 1e-5 in fp32.

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
from torch import nn

from mwa_lightning.backbones.checkpoints import load_backbone
from mwa_lightning.backbones.checkpoints.families.siglip import siglip_key_map
from mwa_lightning.tasks.losses.functions import sigmoid_loss
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

FORM = {"form": "siglip", "activation": "gelu_tanh", "norm_epsilon": 1e-6}
SMALL = SMALL | {"embedding_width": 64}
BASE = BASE | {
    "text_width": 768, "text_heads": 12, "text_ffn_width": 3072, "embedding_width": 768, "patch_size": 16,
}  # fmt: skip
Randomize = Callable[..., None]


def make_theirs(sizes: dict[str, Any], randomize: Randomize, *, seed: int) -> nn.Module:
    from transformers import SiglipConfig, SiglipModel

    def tower(stream: str) -> dict[str, Any]:
        return {
            "hidden_size": sizes[f"{stream}_width"],
            "num_hidden_layers": sizes[f"{stream}_depth"],
            "num_attention_heads": sizes[f"{stream}_heads"],
            "intermediate_size": sizes[f"{stream}_ffn_width"],
        }

    last = sizes["vocabulary_size"] - 1
    text = {
        "vocab_size": last + 1,
        "max_position_embeddings": sizes["text_positions"],
        "projection_size": sizes["embedding_width"],
    }
    model = SiglipModel(
        SiglipConfig(
            vision_config=tower("vision") | {"image_size": sizes["image_size"], "patch_size": sizes["patch_size"]},
            text_config=tower("text") | text | {"bos_token_id": last, "eos_token_id": last, "pad_token_id": 0},
        )
    ).eval()
    randomize(model, width=max(sizes["vision_width"], sizes["text_width"]), seed=seed)
    return model


def official_file(path: Path, reference: nn.Module) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in reference.state_dict().items()}, path)
    return path


@pytest.mark.parametrize(
    ("sizes", "seed"),
    [
        pytest.param(SMALL, 0, id="small"),
        pytest.param(BASE | TWO_LAYERS, 2, id="base_width"),
        pytest.param(BASE, 3, id="base", marks=pytest.mark.slow),
    ],
)
def test_outputs__equal_transformers(
    tmp_path: Path, randomize: Randomize, relative_error: Error, sizes: dict[str, Any], seed: int
) -> None:
    reference = make_theirs(sizes, randomize, seed=seed)
    backbone, heads = make_ours(**FORM, **sizes)
    report = load_backbone(backbone, heads, official_file(tmp_path / "model.safetensors", reference))
    assert (report.dropped, report.new) == ((), ())
    inputs = make_inputs(sizes)
    expected = run_theirs(reference, inputs, mask=False)
    assert_equal(run_ours(backbone, heads, inputs, mask=False), expected, relative_error)


def test_outputs__equal_transformers_at_another_resolution(
    tmp_path: Path, randomize: Randomize, relative_error: Error
) -> None:
    reference = make_theirs(SMALL, randomize, seed=4)
    path = official_file(tmp_path / "model.safetensors", reference)
    larger = SMALL | {"image_size": 56}
    backbone, heads = make_ours(**FORM, **larger)
    assert load_backbone(backbone, heads, path).interpolated == (4, 7)
    inputs = make_inputs(larger)
    expected = run_theirs(reference, inputs, mask=False, interpolate_pos_encoding=True)
    assert_equal(run_ours(backbone, heads, inputs, mask=False), expected, relative_error)


def test_outputs__depend_on_every_mapped_tensor(tmp_path: Path, randomize: Randomize, relative_error: Error) -> None:
    reference = make_theirs(SMALL, randomize, seed=8)
    backbone, heads = make_ours(**FORM, **SMALL)
    load_backbone(backbone, heads, official_file(tmp_path / "model.safetensors", reference))
    inputs = make_inputs(SMALL)
    expected = run_theirs(reference, inputs, mask=False)
    key_map = siglip_key_map(backbone)
    unnoticed = unnoticed_alterations(backbone, heads, key_map, inputs, expected, relative_error, mask=False)
    # A bias of the keys adds the same to all logits of a query: the softmax takes it out. Compared as they are instead.
    keys = {name for name, _ in backbone.named_parameters() if ".attention.key." in name and "bias" in name}
    assert unnoticed == keys | {"heads.vision.attention.key.0.bias"}
    theirs = {key_map.names[key]: tensor for key, tensor in reference.state_dict().items()}
    assert all(torch.equal(backbone.get_parameter(name), theirs[name]) for name in keys)
    joined = reference.state_dict()["vision_model.head.attention.in_proj_bias"]
    assert torch.equal(heads.get_parameter("vision.attention.key.0.bias"), joined[64:128])


def test_loss__equals_transformers(tmp_path: Path, randomize: Randomize) -> None:
    reference = make_theirs(SMALL, randomize, seed=5)
    backbone, heads = make_ours(**FORM, **SMALL)
    load_backbone(backbone, heads, official_file(tmp_path / "model.safetensors", reference))
    images, ids, real = make_inputs(SMALL)
    ours = sigmoid_loss(
        heads.embed_image(backbone.encode_image(images)),
        heads.embed_text(backbone.encode_text(ids, real), real),
        logit_scale=heads.logit_scale,
        logit_bias=heads.logit_bias,
        image_ids=torch.arange(len(ids)),
        mask_same_image=True,
    )
    theirs = reference(pixel_values=images, input_ids=ids, return_loss=True).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
