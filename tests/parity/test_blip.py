"""BLIP against transformers, and the plain code of the other forms against transformers too; to 1e-5 in fp32.

Every tensor is drawn at random, texts are padded, and errors are relative to the spread of the output. That each tensor
counts is shown by altering one after the other.
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
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.tasks.heads import FusionRetrievalHeads, retrieval_heads
from tests.parity.plain_bert import Plain, official_state

pytestmark = pytest.mark.parity("transformers")

TOLERANCE = 1e-5
# Where a single number is altered, its effect must stand clear of the noise.
NOTICED = 5 * TOLERANCE
SMALL = {"vision_width": 64, "text_width": 48, "heads": 4, "depth": 2, "layers": 2, "patch_size": 8, "image_size": 32}
EQUAL = {"vision_width": 64, "text_width": 64, "heads": 4, "depth": 3, "layers": 3, "patch_size": 8, "image_size": 48}
BASE = {
    "vision_width": 768,
    "text_width": 768,
    "heads": 12,
    "depth": 2,
    "layers": 2,
    "patch_size": 16,
    "image_size": 96,
}
# As deep as blip_base is: what the layers round off adds up.
FULL_DEPTH = BASE | {"depth": 12, "layers": 12}
VOCABULARY, POSITIONS, EMBEDDING = 90, 20, 24

Error = Callable[[Tensor, Tensor], float]
Inputs = tuple[Tensor, Tensor, Tensor]


def make_ours(**sizes: int) -> tuple[FusionEncoder, FusionRetrievalHeads]:
    """Ours with memory that nothing has been written to: what a file does not fill shows."""
    with torch.device("meta"):
        backbone = FusionEncoder(
            name="parity", vision_width=sizes["vision_width"], vision_depth=sizes["depth"],
            vision_heads=sizes["heads"], vision_ffn_width=4 * sizes["vision_width"], patch_size=sizes["patch_size"],
            image_size=sizes["image_size"], text_width=sizes["text_width"], text_heads=sizes["heads"],
            text_ffn_width=4 * sizes["text_width"], text_layers=sizes["layers"], fusion_layers=0,
            vocabulary_size=VOCABULARY, text_positions=POSITIONS, max_text_length=16, encoder_token=-1,
            embedding_width=EMBEDDING,
        )  # fmt: skip
        heads = retrieval_heads(backbone)
    assert isinstance(heads, FusionRetrievalHeads)
    return backbone.to_empty(device="cpu").eval(), heads.to_empty(device="cpu").eval()


def make_reference(**sizes: int) -> nn.Module:
    """BLIP of transformers with the official epsilon of the vision norms (its own default is 1e-5)."""
    from transformers import BlipConfig, BlipForImageTextRetrieval

    shared = {"num_attention_heads": sizes["heads"]}
    config = BlipConfig(
        text_config={
            "vocab_size": VOCABULARY, "hidden_size": sizes["text_width"], "intermediate_size": 4 * sizes["text_width"],
            "encoder_hidden_size": sizes["vision_width"], "num_hidden_layers": sizes["layers"],
            "max_position_embeddings": POSITIONS, "bos_token_id": 0, "sep_token_id": 2, **shared,
        },
        vision_config={
            "hidden_size": sizes["vision_width"], "intermediate_size": 4 * sizes["vision_width"],
            "num_hidden_layers": sizes["depth"], "image_size": sizes["image_size"], "patch_size": sizes["patch_size"],
            "layer_norm_eps": 1e-6, **shared,
        },
        image_text_hidden_size=EMBEDDING,
    )  # fmt: skip
    # transformers gives both encoders one width; the form of BLIP large has two.
    config.text_config.encoder_hidden_size = sizes["vision_width"]
    return BlipForImageTextRetrieval(config).eval()


def make_inputs(sizes: dict[str, int]) -> Inputs:
    """Normalised images, ids, and the mask of texts of several lengths."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(3, 3, sizes["image_size"], sizes["image_size"], generator=generator)
    ids = torch.randint(VOCABULARY, (3, 12), generator=generator)
    return images, ids, torch.arange(12) < torch.tensor([12, 7, 2])[:, None]


def with_encoder_token(ids: Tensor) -> Tensor:
    """Put [ENC] first, which transformers leaves to the caller."""
    return torch.cat([torch.full_like(ids[:, :1], VOCABULARY - 1), ids[:, 1:]], dim=1)


def run_theirs(reference: Any, inputs: Inputs) -> dict[str, Tensor]:
    images, ids, mask = inputs
    with torch.no_grad():
        cosines = reference(ids, images, use_itm_head=False, attention_mask=mask.long())
        matched = reference(with_encoder_token(ids), images, attention_mask=mask.long())
    return {
        "image": cosines.last_hidden_state,
        "text": cosines.question_embeds[mask],
        "cosines": cosines.itm_score,
        "fused": matched.question_embeds[mask],
        "matched": matched.itm_score,
    }


def run_ours(backbone: FusionEncoder, heads: FusionRetrievalHeads, inputs: Inputs) -> dict[str, Tensor]:
    images, ids, mask = inputs
    with torch.no_grad():
        seen, text = backbone.encode_image(images), backbone.encode_text(ids, mask)
        fused = backbone.fuse([seen], ids, mask)
        return {
            "image": seen,
            "text": text[mask],
            "cosines": heads.embed_image(seen) @ heads.embed_text(text, mask).T,
            "fused": fused[mask],
            "matched": heads.match(fused),
        }


def randomized(randomize: Callable[..., None], sizes: dict[str, int], seed: int) -> nn.Module:
    reference = make_reference(**sizes)
    randomize(reference, width=max(sizes["vision_width"], sizes["text_width"]), seed=seed)
    return reference


@pytest.mark.parametrize(
    ("sizes", "seed"),
    [
        pytest.param(SMALL, 0, id="two_widths"),
        pytest.param(EQUAL, 1, id="small"),
        pytest.param(BASE, 2, id="base_width"),
        pytest.param(FULL_DEPTH, 5, id="base", marks=pytest.mark.slow),
    ],
)
def test_outputs__equal_transformers(
    tmp_path: Path, randomize: Callable[..., None], relative_error: Error, sizes: dict[str, int], seed: int
) -> None:
    reference = randomized(randomize, sizes, seed)
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    ours, heads = make_ours(**sizes)
    report = load_backbone(ours, heads, tmp_path / "model.safetensors")
    assert (report.dropped, report.new) == ((), ("heads.logit_scale",))
    inputs = make_inputs(sizes)
    found = run_ours(ours, heads, inputs)
    for kind, expected in run_theirs(reference, inputs).items():
        assert relative_error(found[kind], expected) < TOLERANCE, kind


def test_outputs__depend_on_every_mapped_tensor(
    tmp_path: Path, randomize: Callable[..., None], relative_error: Error
) -> None:
    reference = randomized(randomize, SMALL, 3)
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    ours, heads = make_ours(**SMALL)
    load_backbone(ours, heads, tmp_path / "model.safetensors")
    inputs = make_inputs(SMALL)
    expected = run_theirs(reference, inputs)
    generator = torch.Generator().manual_seed(9)
    unnoticed = []
    for name, parameter in [*ours.named_parameters(), *heads.named_parameters()]:
        kept = parameter.detach().clone()
        with torch.no_grad():
            # An alteration of a hundredth of what a tensor holds.
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.002)
        found = run_ours(ours, heads, inputs)
        if max(relative_error(found[kind], expected[kind]) for kind in expected) < NOTICED:
            unnoticed.append(name)
        with torch.no_grad():
            parameter.copy_(kept)
    # Softmax does not see what is added to all of its logits alike; the scale is of the loss.
    assert [name for name in unnoticed if not (".key." in name and name.endswith(".bias"))] == ["logit_scale"]


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of transformers as those of the original code."""
    renamed = {}
    for key, tensor in state.items():
        for theirs, official in (
            ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
            ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
            ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
            ("vision_model.post_layernorm", "visual_encoder.norm"),
            ("vision_model.encoder.layers", "visual_encoder.blocks"),
            ("self_attn.projection", "attn.proj"),
            ("self_attn.qkv", "attn.qkv"),
            ("layer_norm1", "norm1"),
            ("layer_norm2", "norm2"),
        ):
            key = key.replace(theirs, official)
        renamed[key] = tensor
    return renamed


def test_plain_code__equals_transformers(randomize: Callable[..., None], relative_error: Error) -> None:
    reference = randomized(randomize, SMALL, 4)
    plain = Plain(to_official(reference.state_dict()), vision_heads=SMALL["heads"], text_heads=SMALL["heads"])
    images, ids, mask = inputs = make_inputs(SMALL)
    with torch.no_grad():
        seen = [plain.image(image) for image in images]
        texts = [one[real] for one, real in zip(ids, mask, strict=True)]
        fused = [
            plain.fused(text, [image], encoder_token=VOCABULARY - 1) for text, image in zip(texts, seen, strict=True)
        ]
        found = {
            "image": torch.stack(seen),
            "text": torch.cat([plain.text(text) for text in texts]),
            "fused": torch.cat(fused),
            "matched": torch.stack([plain.linear("itm_head", tokens[0]) for tokens in fused]),
        }
    expected = run_theirs(reference, inputs)
    for kind in found:
        assert relative_error(found[kind], expected[kind]) < TOLERANCE, kind


def test_plain_names__are_those_of_the_original_code() -> None:
    """The file that the plain code draws has the keys that transformers' weights have under the original names."""
    drawn = official_state(
        "blip", pair=False, width=64, text_width=48, depth=2, layers=2, vocabulary=VOCABULARY, patch=8, grid=4,
        positions=POSITIONS, embedding=EMBEDDING,
    )  # fmt: skip
    theirs = to_official(make_reference(**SMALL).state_dict())
    beside = {"text_encoder.embeddings.position_ids", "temp", "image_queue", "queue_ptr"}
    of_the_model = {key: tensor.shape for key, tensor in drawn.items() if key not in beside and "_m." not in key}
    assert of_the_model == {key: tensor.shape for key, tensor in theirs.items()}


def test_temperature__scales_as_in_the_original_code(tmp_path: Path) -> None:
    state = official_state(
        "blip", pair=False, width=64, text_width=48, depth=2, layers=2, vocabulary=VOCABULARY, patch=8, grid=4,
        positions=POSITIONS, embedding=EMBEDDING,
    )  # fmt: skip
    torch.save({"model": state, "epoch": 5}, tmp_path / "model_base_retrieval_coco.pth")
    ours, heads = make_ours(**SMALL)
    report = load_backbone(ours, heads, tmp_path / "model_base_retrieval_coco.pth")
    assert report.new == ()
    with torch.no_grad():
        assert heads.logit_scale.exp().item() == pytest.approx(1 / state["temp"].item(), rel=1e-6)
