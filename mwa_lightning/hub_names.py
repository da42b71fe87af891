"""Names by which people call published weights, in place of a file: of the hub, of OpenAI's CLIP and of OpenCLIP."""

from __future__ import annotations

import re

_OF_OPENAI = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
_OF_OPEN_CLIP = {
    "ViT-B-32": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    "ViT-B-16": "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
    "ViT-L-14": "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
    "ViT-H-14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "ViT-bigG-14": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
    "ViT-B-16-SigLIP": "google/siglip-base-patch16-224",
    "ViT-B-16-SigLIP2": "google/siglip2-base-patch16-224",
    "ViT-SO400M-14-SigLIP-384": "google/siglip-so400m-patch14-384",
}
_ADDRESS = re.compile(r"https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/.*)?")
_PREFIXED = re.compile(r"(?:hf-hub|hf_hub|hf|hub):/*([\w.-]+/[\w.-]+)")
_FILE = re.compile(r".*\.(safetensors|bin|pth?|ckpt|json|npz|h5|msgpack|onnx|gguf)")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def hub_name(text: str) -> str | None:
    """What to type for weights of a name that is no path; None where it looks like the path of a file."""
    if text.startswith("RN") and text[2:].replace("x", "").isdigit():
        return f"{text} is a CLIP with a ResNet, for which there is no backbone here; take one with a ViT"
    known = {**_OF_OPENAI, **_OF_OPEN_CLIP}
    if text in known:
        return f"{text} names a model, whose weights are on the hub: write hf://{known[text]}"
    if (found := _ADDRESS.fullmatch(text) or _PREFIXED.fullmatch(text)) is not None:
        return f"for the files of that name on the hub, write hf://{found[1]}"
    if re.match(r"[a-z][a-z0-9+]*://", text):
        return "it is an address: download the file and give its path, or hf://OWNER/NAME"
    if _NAME.fullmatch(text) and not _FILE.fullmatch(text):
        return f"for the files of that name on the hub, write hf://{text}"
    return None
