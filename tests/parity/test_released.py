"""Adapters of the released MultiWay-Adapter code: its outputs on images and on texts, and more on fused input.

The reference is its forward pass on top of torchscale's layer, written anew from its description.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mwa_lightning.adapters.files.adapter_file import load_adapter
from mwa_lightning.adapters.files.released_mwa import read_released, released_options
from mwa_lightning.adapters.mwa import MultiWayAdapter
from mwa_lightning.backbones.checkpoints import load_backbone
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.tasks.heads import RetrievalHeads
from mwa_lightning.tasks.model import RetrievalModel

pytestmark = pytest.mark.parity

SIZES = {"width": 64, "depth": 3, "heads": 4, "patch_size": 8, "image_size": 32, "vocabulary_size": 90}
MID, SCALE = 10, 0.6


class Extractor(nn.Module):
    """up(ReLU(down(x))) times the scale."""

    def __init__(self) -> None:
        super().__init__()
        self.down_proj = nn.Linear(SIZES["width"], MID)
        self.up_proj = nn.Linear(MID, SIZES["width"])

    def forward(self, x: Tensor) -> Tensor:
        return self.up_proj(self.down_proj(x).clamp(min=0)) * SCALE


def give_adapters(reference: nn.Module) -> nn.Module:
    """Make torchscale's layers those of the released code (`--ffn_adapt --ffn_mode both --ffn_enhance`)."""
    from torchscale.architecture.encoder import EncoderLayer
    from torchscale.component.multiway_network import set_split_position

    class ReleasedLayer(EncoderLayer):
        def forward(
            self, x: Tensor, encoder_padding_mask: Tensor, *, multiway_split_position: int | None = None, **more: Any
        ) -> tuple[Tensor, None]:
            if multiway_split_position is not None:
                self.apply(set_split_position(multiway_split_position))
            normed = self.self_attn_layer_norm(x)
            attended, _ = self.self_attn(
                query=normed, key=normed, value=normed, key_padding_mask=encoder_padding_mask, attn_mask=None
            )
            x = x + attended
            extracted: Tensor | float = 0.0  # on fused input no extractor runs
            if self.ffn.split_position == -1:  # images
                extracted = self.adaptmlp_text(x)
            elif self.ffn.split_position == 0:  # texts
                extracted = self.adaptmlp_vision(x)
            x = x + self.ffn(self.final_layer_norm(x)) + extracted
            return x + self.enhancemlp(x), None

    for layer in reference.encoder.layers:
        layer.__class__ = ReleasedLayer
        layer.adaptmlp_text, layer.adaptmlp_vision = Extractor(), Extractor()
        layer.enhancemlp = layer.build_ffn(layer.embed_dim, layer.args)
    return reference.eval()


def run_ours(backbone: Multiway, images: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return {
            "image": backbone.encode_image(images),
            "text": backbone.encode_text(ids, mask),
            "fused": torch.cat(backbone.fuse(images, ids, mask), dim=1),
        }


@pytest.mark.parametrize("whole", [True, False], ids=["full checkpoint", "adapter alone"])
def test_released__same_outputs_on_images_and_texts_and_adapted_fused_input(
    tmp_path: Path,
    make_reference: Callable[..., nn.Module],
    randomize: Callable[..., None],
    relative_error: Callable[[Tensor, Tensor], float],
    whole: bool,
) -> None:
    reference = give_adapters(make_reference(**SIZES))
    randomize(reference, width=SIZES["width"], seed=0)
    state = {f"beit3.{key}": tensor for key, tensor in reference.state_dict().items()}
    added = {key: tensor for key, tensor in state.items() if "adaptmlp" in key or "enhancemlp" in key}
    assert len(added) == SIZES["depth"] * 14
    pretrained, released = tmp_path / "pretrained.pth", tmp_path / "released.pth"
    torch.save({"model": {key: tensor for key, tensor in state.items() if key not in added}}, pretrained)
    torch.save({"model": state if whole else added}, released)

    backbone = Multiway(name="parity", ffn_width=4 * SIZES["width"], **SIZES)
    heads = RetrievalHeads(width=SIZES["width"])
    load_backbone(backbone, heads, pretrained)
    adapter = MultiWayAdapter(scale=SCALE, **released_options(read_released(released)))  # type: ignore[arg-type]
    model = RetrievalModel(backbone=backbone, adapter=adapter, heads=heads).eval()
    load_adapter(released, model, fingerprint=backbone.fingerprint)

    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    ids = torch.randint(90, (3, 9), generator=generator)
    mask = torch.arange(9) < torch.tensor([9, 5, 1])[:, None]
    with torch.no_grad():
        theirs = {
            "image": reference(visual_tokens=images)["encoder_out"],
            "text": reference(textual_tokens=ids, text_padding_position=~mask)["encoder_out"],
            "fused": reference(visual_tokens=images, textual_tokens=ids, text_padding_position=~mask)["encoder_out"],
        }
    ours = run_ours(backbone, images, ids, mask)
    assert relative_error(ours["image"], theirs["image"]) < 1e-5
    assert relative_error(ours["text"], theirs["text"]) < 1e-5
    assert relative_error(ours["fused"], theirs["fused"]) > 0.1

    # The extractors make the whole difference: without them, fused input gives theirs too.
    for extractor in adapter.extractors.values():
        extractor.scale = 0.0
    without = run_ours(backbone, images, ids, mask)
    assert relative_error(without["fused"], theirs["fused"]) < 1e-5
    assert relative_error(without["image"], theirs["image"]) > 0.1
