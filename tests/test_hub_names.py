"""Names in place of files: each that people use says what to type instead."""

from __future__ import annotations

import pytest

from mwa_lightning.hub_names import hub_name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("openai/clip-vit-base-patch32", "write hf://openai/clip-vit-base-patch32"),
        ("ViT-B/32", "write hf://openai/clip-vit-base-patch32"),
        ("ViT-L/14@336px", "write hf://openai/clip-vit-large-patch14-336"),
        ("ViT-H-14", "write hf://laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
        ("timm/ViT-B-16-SigLIP2", "write hf://timm/ViT-B-16-SigLIP2"),
        ("hf-hub:timm/ViT-B-16-SigLIP", "write hf://timm/ViT-B-16-SigLIP"),
        ("https://huggingface.co/openai/clip-vit-base-patch32/tree/main", "write hf://openai/clip-vit-base-patch32"),
        ("https://example.org/model.pth", "download the file"),
        ("RN50x4", "a CLIP with a ResNet"),
        ("weights/model.safetensors", None),
        ("weights.pth", None),
        ("/data/weights/clip", None),
        ("../weights", None),
    ],
)
def test_hub_name(text: str, said: str | None) -> None:
    found = hub_name(text)
    assert found is None if said is None else (found is not None and found.endswith(said)) or said in str(found)
