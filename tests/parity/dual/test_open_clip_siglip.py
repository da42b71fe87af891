"""OpenCLIP's SigLIP files against transformers, which has the same model by other names; any tensor altered shows.

The names and shapes of a model that open_clip 3.3.0 and timm 1.0.31 made are in `open_clip_siglip.tsv`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mwa_lightning.backbones.checkpoints import load_backbone
from mwa_lightning.errors import CheckpointError
from tests.parity.dual.dual_encoders import SMALL as OF_CLIP
from tests.parity.dual.dual_encoders import Error, assert_equal, make_inputs, make_ours, run_ours, run_theirs
from tests.parity.dual.test_siglip import FORM, Randomize, make_theirs

pytestmark = pytest.mark.parity("transformers")

SMALL = OF_CLIP | {"embedding_width": 64, "image_size": 36}  # 36 px: 4 x 4 patches of 8 px, the rest is not seen
NAMES = Path(__file__).parent / "open_clip_siglip.tsv"
_LAYER = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj", "mlp.fc1": "mlp.fc1"}
_LAYER |= {"mlp.fc2": "mlp.fc2"}
_TEXT_LAYER = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
_TEXT_LAYER |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


def open_clip_names(reference: nn.Module) -> dict[str, Tensor]:
    """The tensors of transformers' model by OpenCLIP's names, put together as there."""
    theirs = {name: tensor.detach().clone() for name, tensor in reference.state_dict().items()}
    modules: dict[str, str] = {
        "visual.trunk.patch_embed.proj": "vision_model.embeddings.patch_embedding",
        "visual.trunk.norm": "vision_model.post_layernorm",
        "visual.trunk.attn_pool.proj": "vision_model.head.attention.out_proj",
        "visual.trunk.attn_pool.norm": "vision_model.head.layernorm",
        "visual.trunk.attn_pool.mlp.fc1": "vision_model.head.mlp.fc1",
        "visual.trunk.attn_pool.mlp.fc2": "vision_model.head.mlp.fc2",
        "text.ln_final": "text_model.final_layer_norm",
        "text.text_projection": "text_model.head",
    }
    state = {
        "logit_scale": theirs["logit_scale"].reshape([]),
        "logit_bias": theirs["logit_bias"].reshape([]),
        "visual.trunk.pos_embed": theirs["vision_model.embeddings.position_embedding.weight"][None],
        "visual.trunk.attn_pool.latent": theirs["vision_model.head.probe"],
        "text.positional_embedding": theirs["text_model.embeddings.position_embedding.weight"],
        "text.token_embedding.weight": theirs["text_model.embeddings.token_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        whole = theirs[f"vision_model.head.attention.in_proj_{kind}"]
        third = len(whole) // 3
        state[f"visual.trunk.attn_pool.q.{kind}"] = whole[:third]
        state[f"visual.trunk.attn_pool.kv.{kind}"] = whole[third:]
        for layer in range(SMALL["vision_depth"]):
            names = [f"vision_model.encoder.layers.{layer}.self_attn.{part}_proj.{kind}" for part in "qkv"]
            state[f"visual.trunk.blocks.{layer}.attn.qkv.{kind}"] = torch.cat([theirs[name] for name in names])
        for layer in range(SMALL["text_depth"]):
            names = [f"text_model.encoder.layers.{layer}.self_attn.{part}_proj.{kind}" for part in "qkv"]
            state[f"text.transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat([theirs[n] for n in names])
    for layer in range(SMALL["vision_depth"]):
        before = f"visual.trunk.blocks.{layer}"
        modules |= {
            f"{before}.{ours}": f"vision_model.encoder.layers.{layer}.{other}" for ours, other in _LAYER.items()
        }
    for layer in range(SMALL["text_depth"]):
        before = f"text.transformer.resblocks.{layer}"
        modules |= {f"{before}.{o}": f"text_model.encoder.layers.{layer}.{other}" for o, other in _TEXT_LAYER.items()}
    state |= {f"{o}.{kind}": theirs[f"{other}.{kind}"] for o, other in modules.items() for kind in ("weight", "bias")}
    return {name: tensor.contiguous() for name, tensor in state.items()}


def test_names__are_those_of_open_clip(randomize: Randomize) -> None:
    listed = dict(line.split("\t") for line in NAMES.read_text().splitlines())
    made = open_clip_names(make_theirs(SMALL, randomize, seed=1))
    assert {name: str(list(tensor.shape)) for name, tensor in made.items()} == listed


@pytest.mark.parametrize("altering", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_outputs__equal_transformers_and_show_every_altered_tensor(
    tmp_path: Path, randomize: Randomize, relative_error: Error, altering: bool
) -> None:
    reference = make_theirs(SMALL, randomize, seed=0)
    state = open_clip_names(reference)
    path = tmp_path / "open_clip_model.safetensors"
    save_file(state, path)
    backbone, heads = make_ours(**FORM, **SMALL)
    report = load_backbone(backbone, heads, path)
    assert (report.dropped, report.new) == ((), ())
    inputs = make_inputs(SMALL)
    expected = run_theirs(reference, inputs, mask=False)
    assert_equal(run_ours(backbone, heads, inputs, mask=False), expected, relative_error)

    for name, tensor in state.items() if altering else ():
        altered = tensor + 0.002 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(9))
        # A bias of the keys adds the same to all logits of a query: the rest of the joined tensor shows.
        save_file(state | {name: altered}, path)
        load_backbone(backbone, heads, path)
        found = run_ours(backbone, heads, inputs, mask=False)
        assert max(relative_error(found[kind], expected[kind]) for kind in expected) > 5e-5, name


def test_outputs__a_tensor_less_is_named(tmp_path: Path, randomize: Randomize) -> None:
    state = open_clip_names(make_theirs(SMALL, randomize, seed=0))
    del state["visual.trunk.attn_pool.kv.bias"]
    save_file(state, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: visual\.trunk\.attn_pool\.kv\.bias"):
        load_backbone(*make_ours(**FORM, **SMALL), tmp_path / "open_clip_model.safetensors")
