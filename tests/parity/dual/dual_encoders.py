"""What the parity tests of CLIP and SigLIP share: sizes, inputs, and our outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mwa_lightning.backbones.checkpoints.key_map import KeyMap
from mwa_lightning.backbones.checkpoints.loading import parameters_to_fill
from mwa_lightning.backbones.dual import DualEncoder
from mwa_lightning.tasks.heads import EmbeddingHeads, retrieval_heads

TOLERANCE = 1e-5
Error = Callable[[Tensor, Tensor], float]
Inputs = tuple[Tensor, Tensor, Tensor]
Outputs = dict[str, Tensor]

# Other widths, depths and heads for texts than for images: nothing may be taken from the wrong one.
SMALL: dict[str, Any] = {
    "vision_width": 64, "vision_depth": 2, "vision_heads": 4, "vision_ffn_width": 192,
    "text_width": 48, "text_depth": 3, "text_heads": 2, "text_ffn_width": 96,
    "embedding_width": 40, "patch_size": 8, "image_size": 32, "vocabulary_size": 90, "text_positions": 12,
}  # fmt: skip
BASE: dict[str, Any] = {
    "vision_width": 768, "vision_depth": 12, "vision_heads": 12, "vision_ffn_width": 3072,
    "text_width": 512, "text_depth": 12, "text_heads": 8, "text_ffn_width": 2048,
    "embedding_width": 512, "patch_size": 32, "image_size": 224, "vocabulary_size": 1000, "text_positions": 20,
}  # fmt: skip
TWO_LAYERS = {"vision_depth": 2, "text_depth": 2}


def make_ours(**sizes: Any) -> tuple[DualEncoder, EmbeddingHeads]:
    backbone = DualEncoder(name="parity", max_text_length=sizes["text_positions"], **sizes).eval()
    return backbone, retrieval_heads(backbone).eval()


def make_inputs(sizes: dict[str, Any], *, samples: int = 4) -> Inputs:
    """Normalised images, ids that end with the largest one and are padded with it, as CLIP's do, and their mask."""
    generator = torch.Generator().manual_seed(7)
    length, last = sizes["text_positions"], sizes["vocabulary_size"] - 1
    images = torch.randn(samples, 3, sizes["image_size"], sizes["image_size"], generator=generator)
    ids = torch.randint(last, (samples, length), generator=generator)
    lengths = torch.tensor([length, length - 5, 2, 1])[:samples, None]
    places = torch.arange(length)
    return images, ids.masked_fill(places >= lengths - 1, last), places < lengths


def run_theirs(reference: nn.Module, inputs: Inputs, *, mask: bool, **options: Any) -> Outputs:
    images, ids, real = inputs
    with torch.no_grad():
        found = reference(
            pixel_values=images,
            input_ids=ids,
            attention_mask=real.long() if mask else None,
            return_dict=True,
            **options,
        )
    return {
        "image": found.image_embeds,
        "text": found.text_embeds,
        "logits": found.logits_per_image,
        "text tokens": found.text_model_output.last_hidden_state[real if mask else torch.ones_like(real)],
    }


def run_ours(backbone: DualEncoder, heads: EmbeddingHeads, inputs: Inputs, *, mask: bool) -> Outputs:
    images, ids, real = inputs
    with torch.no_grad():
        tokens = backbone.encode_text(ids, real if mask else None)
        image = heads.embed_image(backbone.encode_image(images))
        text = heads.embed_text(tokens, real if mask else None)
        logits = heads.logit_scale.exp() * image @ text.T
        return {
            "image": image,
            "text": text,
            "logits": logits if heads.logit_bias is None else logits + heads.logit_bias,
            "text tokens": tokens[real if mask else torch.ones_like(real)],
        }


def assert_equal(found: Outputs, expected: Outputs, error: Error) -> None:
    for kind, value in expected.items():
        assert error(found[kind], value) < TOLERANCE, kind


def unnoticed_alterations(
    backbone: DualEncoder,
    heads: EmbeddingHeads,
    key_map: KeyMap,
    inputs: Inputs,
    expected: Outputs,
    error: Error,
    *,
    mask: bool,
) -> set[str]:
    """The mapped tensors that can be altered by a hundredth of what they hold without an output showing it."""
    parameters = parameters_to_fill(backbone, heads)
    assert {name for key in key_map.names for name in key_map.parts(key)} == parameters.keys()
    generator = torch.Generator().manual_seed(9)
    unnoticed = set()
    for name, parameter in parameters.items():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.002)
        found = run_ours(backbone, heads, inputs, mask=mask)
        if max(error(found[kind], expected[kind]) for kind in expected) < 5 * TOLERANCE:
            unnoticed.add(name)
        with torch.no_grad():
            parameter.copy_(kept)
    return unnoticed
