"""What a file of tensors is that no backbone here is made for, told from the names in it."""

from __future__ import annotations

import re

from mwa_lightning.backbones.checkpoints.file_format import State

_OFFICIAL = "give a file of the whole model"

# What one of the names begins with or holds, what the file is, and what to do. The first that fits counts.
_KINDS: tuple[tuple[str, str, str], ...] = (
    (r"(.*\.)?_flat_param", "flat parameters of FSDP", "save a full state dict (FULL_STATE_DICT) and give that"),
    (
        r".*\.(lora_[AB]|lora_magnitude_vector|hada_w|ia3_l)\b",
        "an adapter of PEFT, not a whole model",
        "merge it into its model (merge_and_unload, then save_pretrained) and give that folder",
    ),
    (
        r"model\.(adapter|heads)\.",
        "a checkpoint of a run of this package, not a whole model",
        "give the run's directory as adapter.checkpoint, and the pretrained weights as backbone.checkpoint",
    ),
    (
        r"(adapter|heads)\.",
        "an adapter of this package, not a whole model",
        "give it as adapter.checkpoint, and the pretrained weights as backbone.checkpoint",
    ),
    (
        r".*\.(adaptmlp_\w+|enhancemlp|modex)\.",
        "an adapter of the released MultiWay-Adapter or ModeX code",
        "give it as adapter.checkpoint",
    ),
    (r"(.*\.)?text_decoder\.(?!bert)", "CoCa, which has a decoder", "take a CLIP without one"),
    (r"(.*\.)?text_encoder\.", "a model that is built otherwise", "take a BLIP or ALBEF"),
    (
        r"(.*\.)?text_decoder\.",
        "a BLIP for captions, which has no text encoder",
        "take one for retrieval, such as hf://Salesforce/blip-itm-base-coco",
    ),
    (
        r"(.*\.)?(vision_tower|multi_modal_projector|mm_projector)\.",
        "a language model with a vision tower (LLaVA and its like)",
        "give the CLIP or SigLIP that its tower is from",
    ),
    (r"(.*\.)?(qformer|Qformer|query_tokens)\b", "BLIP-2, or another model with a Q-Former", "take BLIP"),
    (r"(.*\.)?visual\.(layer1|attnpool)\.", "CLIP with a ResNet (RN50 and its like)", "take one with a ViT"),
    (r"(.*\.)?visual\.(blocks|rope|patch_embed)\b", "EVA-CLIP, which is built otherwise", "take a CLIP or SigLIP"),
    (r"(.*\.)?visual\.trunk\.(stem|stages|rope|layers)\b", "a CLIP with another image encoder of timm", "take a ViT"),
    (r"(.*\.)?text\.transformer\.(embeddings|encoder|shared)\.", "a CLIP with another text encoder", "take OpenCLIP's"),
    (r"(.*\.)?text_model\.encoder\.layer\.\d+\.", "a CLIP with BERT for texts (Chinese-CLIP, AltCLIP)", "take a CLIP"),
    (r"(.*\.)?diffusion_model\.", "a diffusion model", "take a CLIP, SigLIP, BLIP, ALBEF or BEiT-3"),
    (r"(.*\.)?(embed_tokens|lm_head|wte)\.", "a language model", "take a CLIP, SigLIP, BLIP, ALBEF or BEiT-3"),
    (r"(.*\.)?(vision_model|visual|visual_encoder)\.", "the image half of a model alone", _OFFICIAL),
    (r"(.*\.)?text_model\.", "the text half of a model alone", _OFFICIAL),
    (r"((image_|text_)?encoder\.)?visual_encoder_m\.", "a momentum encoder alone", _OFFICIAL),
    (r"(.*\.)?(cls_token|class_embedding|blocks\.0\.attn)\b", "a vision transformer alone (ViT, DINO)", _OFFICIAL),
    (r"(.*\.)?embeddings\.(cls_token|patch_embeddings)\b", "a vision transformer alone (ViT, DINO)", _OFFICIAL),
    (r"(.*\.)?embeddings\.word_embeddings\b", "a text encoder alone (BERT and its like)", _OFFICIAL),
    (r"(.*\.)?(token_embedding|embeddings\.token_embedding)\b", "the text half of a CLIP alone", _OFFICIAL),
    (r"(.*\.)?layer[1-4]\.0\.(conv|bn)1\b", "a ResNet", "take a CLIP, SigLIP, BLIP, ALBEF or BEiT-3"),
    (r"(.*\.)?exp_avg(_sq)?\b", "an optimizer's state alone", _OFFICIAL),
)
_PATTERNS = tuple((re.compile(pattern), what, advice) for pattern, what, advice in _KINDS)


_PATCHES = "vision_model.embeddings.patch_embedding.weight"


def named(state: State) -> str | None:
    """What a file with these tensors is, and what to do; None where nothing tells."""
    if any(key.endswith(_PATCHES) and tensor.ndim == 2 for key, tensor in state.items()):
        return (
            "it is a SigLIP 2 NaFlex, whose images have any shape; take one of fixed resolution, such as "
            "google/siglip2-base-patch16-224"
        )
    for pattern, what, advice in _PATTERNS:
        if any(pattern.match(key) for key in state):
            return f"it is {what}; {advice}"
    return None
