"""Write tests/parity/golden/*.safetensors: tiny BLIP and ALBEF of LAVIS, every tensor drawn at random, with outputs.

    pip install --no-deps salesforce-lavis==1.0.2 transformers==4.26.1 tokenizers==0.13.3 huggingface_hub==0.20.3
    python scripts/golden/fusion_encoders.py

In an environment of its own, with torch, fairscale and safetensors: LAVIS wants a transformers of long ago. Of LAVIS
only the encoders are imported (lavis/models: vit.py, med.py, blip_models/nlvr_encoder.py). A file has the weights as
`state.*`, the inputs as `input.*` and the outputs as `output.*`.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

FOLDER = Path(__file__).parents[2] / "tests" / "parity" / "golden"
VISION_WIDTH, TEXT_WIDTH, HEADS, DEPTH, PATCH, IMAGE = 16, 12, 4, 2, 4, 8
VOCABULARY, POSITIONS, EMBEDDING, FUSION_LAYER = 90, 20, 24, 2
# LAVIS merges the two images in BLIP's layers from 6 up, so there are some below and some above.
TEXT_LAYERS = {("blip", False): 2, ("blip", True): 12, ("albef", False): 4, ("albef", True): 6}


class PatchEmbed(nn.Module):
    """Stands in for timm's, which needs torchvision."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


def stand_in(name: str, **content: Any) -> None:
    """Put a module in the place of one that is not needed, or would import all of LAVIS."""
    module = types.ModuleType(name)
    for key, value in content.items():
        setattr(module, key, value)
    sys.modules[name] = module


@cache
def import_lavis() -> tuple[Any, Any, Any, Any]:
    """LAVIS's vision transformer, BERT, BERT for two images, and the configuration of both."""
    import transformers.modeling_utils  # noqa: F401  (it looks for timm: before that has a stand-in)
    from transformers.models.bert.configuration_bert import BertConfig

    found = importlib.util.find_spec("lavis")
    assert found is not None, "salesforce-lavis is not installed"
    assert found.origin is not None
    root = Path(found.origin).parent
    for name in ("lavis", "lavis.common", "lavis.models", "lavis.models.blip_models"):
        stand_in(name, __path__=[str(root.joinpath(*name.split(".")[1:]))])
    stand_in("lavis.common.dist_utils", download_cached_file=None, is_dist_avail_and_initialized=None)
    stand_in("lavis.common.utils", get_abs_path=None, is_url=None)
    stand_in("timm", __path__=[])
    stand_in("timm.models", __path__=[])
    stand_in("timm.models.vision_transformer", _cfg=None, PatchEmbed=PatchEmbed)
    stand_in("timm.models.registry", register_model=lambda function: function)
    stand_in("timm.models.layers", trunc_normal_=nn.init.trunc_normal_, DropPath=nn.Identity)
    stand_in("timm.models.helpers", named_apply=None, adapt_input_conv=None)
    from lavis.models.blip_models.nlvr_encoder import BertModel as PairBertModel
    from lavis.models.med import BertModel
    from lavis.models.vit import VisionTransformer

    return VisionTransformer, BertModel, PairBertModel, BertConfig


def make(kind: str, *, pair: bool) -> nn.Module:
    """The model as LAVIS's configurations make it, at tiny size."""
    vision, bert, pair_bert, bert_config = import_lavis()
    config = bert_config(
        hidden_size=TEXT_WIDTH, num_attention_heads=HEADS, intermediate_size=4 * TEXT_WIDTH, vocab_size=VOCABULARY,
        num_hidden_layers=TEXT_LAYERS[kind, pair], max_position_embeddings=POSITIONS, layer_norm_eps=1e-12,
    )  # fmt: skip
    config.encoder_width, config.add_cross_attention, config.add_type_embeddings = VISION_WIDTH, True, False
    if kind == "albef":
        config.fusion_layer = FUSION_LAYER
    model = nn.Module()
    model.visual_encoder = vision(
        img_size=IMAGE, patch_size=PATCH, embed_dim=VISION_WIDTH, depth=DEPTH, num_heads=HEADS
    )
    model.text_encoder = (pair_bert if pair and kind == "blip" else bert)(config, add_pooling_layer=False)
    if pair:
        model.cls_head = nn.Sequential(nn.Linear(TEXT_WIDTH, TEXT_WIDTH), nn.ReLU(), nn.Linear(TEXT_WIDTH, 2))
    else:
        model.vision_proj, model.text_proj = nn.Linear(VISION_WIDTH, EMBEDDING), nn.Linear(TEXT_WIDTH, EMBEDDING)
        model.itm_head = nn.Linear(TEXT_WIDTH, 2)
    gains = {id(norm.weight) for norm in model.modules() if isinstance(norm, nn.LayerNorm)}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if id(parameter) in gains else 0.0, 0.2)
    if pair and kind == "albef":  # albef_nlvr.py, share_cross_attention
        layers: Any = model.get_submodule("text_encoder.encoder.layer")
        for layer in range(FUSION_LAYER, TEXT_LAYERS[kind, pair], 2):
            lower, upper = (layers[layer + place].crossattention.self for place in (0, 1))
            for part in ("key", "value"):
                getattr(lower, part).weight, getattr(lower, part).bias = getattr(upper, part).parameters()
    if not pair:
        model.temp = nn.Parameter(torch.tensor(0.05))
    return model.eval()


@torch.no_grad()
def outputs(model: Any, kind: str, images: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """As LAVIS's models call their encoders (albef_retrieval.py, albef_nlvr.py, blip_retrieval.py, blip_nlvr.py)."""
    tokens = [model.visual_encoder(each) for each in images]
    seen = [torch.ones(each.shape[:2], dtype=torch.long) for each in tokens]
    options = {"attention_mask": mask.long(), "return_dict": True}
    fused_ids = ids
    if kind == "blip":
        fused_ids = torch.cat([torch.full_like(ids[:, :1], VOCABULARY - 1), ids[:, 1:]], dim=1)
    one = len(images) == 1
    fused = model.text_encoder(
        fused_ids,
        encoder_hidden_states=tokens[0] if one else tokens,
        encoder_attention_mask=seen[0] if one else seen,
        **options,
    ).last_hidden_state
    found = {"image": tokens[0], "fused": fused[mask]}
    if not one:
        return found | {"classes": model.cls_head(fused[:, 0])}
    text = model.text_encoder(ids, mode="text", **options).last_hidden_state
    embedded = [
        functional.normalize(projection(of[:, 0]), dim=-1)
        for projection, of in ((model.vision_proj, tokens[0]), (model.text_proj, text))
    ]
    scores = embedded[0] @ embedded[1].T / model.temp
    return found | {"text": text[mask], "scores": scores, "matched": model.itm_head(fused[:, 0])}


def main() -> None:
    """Write one file a form."""
    FOLDER.mkdir(exist_ok=True)
    for kind, pair in TEXT_LAYERS:
        torch.manual_seed(0)
        model = make(kind, pair=pair)
        images = torch.randn(2 if pair else 1, 3, 3, IMAGE, IMAGE)
        ids = torch.randint(1, VOCABULARY - 1, (3, 7))
        mask = torch.arange(7) < torch.tensor([7, 4, 2])[:, None]
        content = {f"state.{name}": tensor for name, tensor in model.state_dict().items()}
        content |= {"input.images": images, "input.ids": ids, "input.mask": mask}
        content |= {f"output.{name}": tensor for name, tensor in outputs(model, kind, images, ids, mask).items()}
        name = f"{kind}_pair" if pair else kind
        save_file({key: value.clone().contiguous() for key, value in content.items()}, FOLDER / f"{name}.safetensors")


if __name__ == "__main__":
    main()
