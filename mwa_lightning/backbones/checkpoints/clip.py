"""The files of CLIP: with the names of Hugging Face's transformers, or with those of OpenAI and OpenCLIP."""

from __future__ import annotations

import re

from mwa_lightning.backbones.checkpoints.key_map import KeyMap
from mwa_lightning.backbones.checkpoints.loading import FileFormat, State
from mwa_lightning.backbones.dual import DualEncoder

POSITIONS = "vision.embedding.positions"
HEADS = frozenset({"heads.vision.weight", "heads.text.weight", "heads.logit_scale"})
KINDS = ("weight", "bias")

# Counted positions and the causal mask, which are no weights; and the sizes that OpenAI's own files carry.
_DROPPED = (
    re.compile(r"(vision|text)_model\.embeddings\.position_ids"),
    re.compile(r"attn_mask|input_resolution|context_length|vocab_size"),
)


def blocks_of_transformers(theirs: str, stream: str, depth: int) -> dict[str, str]:
    """The blocks of one stream as Hugging Face names them; `theirs` is what stands before `.encoder`."""
    modules = {}
    for layer in range(depth):
        official, ours = f"{theirs}.encoder.layers.{layer}", f"{stream}.blocks.{layer}"
        for letter, part in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "output")):
            modules[f"{official}.self_attn.{letter}_proj"] = f"{ours}.attention.{part}.{stream}"
        modules |= {
            f"{official}.layer_norm1": f"{ours}.attention_norm.{stream}",
            f"{official}.layer_norm2": f"{ours}.ffn_norm.{stream}",
            f"{official}.mlp.fc1": f"{ours}.ffn.{stream}.up",
            f"{official}.mlp.fc2": f"{ours}.ffn.{stream}.down",
        }
    return with_kinds(modules)


def with_kinds(modules: dict[str, str]) -> dict[str, str]:
    """Names of weights and biases from those of modules."""
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in modules.items() for kind in KINDS}


def sizes(form: str, vision: tuple[int, int], text: tuple[int, int], vocabulary: int, patch: int) -> str:
    """Sizes as a text to compare: (width, depth) of both streams, rows of the token table, pixels of a patch."""
    return (
        f"{form} of widths {vision[0]} and {text[0]}, depths {vision[1]} and {text[1]}, vocabulary {vocabulary}, "
        f"patches of {patch} px"
    )


def sizes_of_backbone(backbone: DualEncoder) -> str:
    """Those of a backbone."""
    return sizes(
        backbone.form,
        (backbone.vision_width, backbone.vision_depth),
        (backbone.text_width, backbone.text_depth),
        backbone.vocabulary_size,
        backbone.patch_size,
    )


def sizes_of_file(state: State, form: str, patches: str, tokens: str, vision_layer: str, text_layer: str) -> str:
    """Those of a file, from the names of two tables and what stands before the number of a layer."""

    def depth(before: str) -> int:
        pattern = re.compile(re.escape(before) + r"\.(\d+)\.")
        return 1 + max((int(found[1]) for key in state if (found := pattern.match(key))), default=-1)

    kernel, table = state[patches], state[tokens]
    return sizes(
        form,
        (kernel.shape[0], depth(vision_layer)),
        (table.shape[1], depth(text_layer)),
        table.shape[0],
        kernel.shape[-1],
    )


def transformers_key_map(backbone: DualEncoder) -> KeyMap:
    """The names of transformers' CLIPModel."""
    names: dict[str, str | tuple[str, ...]] = {
        "vision_model.embeddings.class_embedding": "vision.embedding.cls_token",
        "vision_model.embeddings.patch_embedding.weight": "vision.embedding.projection.weight",
        "vision_model.embeddings.position_embedding.weight": POSITIONS,
        "text_model.embeddings.token_embedding.weight": "text.embedding.tokens.weight",
        "text_model.embeddings.position_embedding.weight": "text.embedding.positions",
        "visual_projection.weight": "heads.vision.weight",
        "text_projection.weight": "heads.text.weight",
        "logit_scale": "heads.logit_scale",
    }
    names |= with_kinds(
        {
            "vision_model.pre_layrnorm": "vision.embedding.norm",
            "vision_model.post_layernorm": "vision.final_norm",
            "text_model.final_layer_norm": "text.final_norm",
        }
    )
    names |= blocks_of_transformers("vision_model", "vision", backbone.vision_depth)
    names |= blocks_of_transformers("text_model", "text", backbone.text_depth)
    return KeyMap(names=names, dropped=_DROPPED, optional=[HEADS])


def open_clip_key_map(backbone: DualEncoder) -> KeyMap:
    """The names of OpenAI's CLIP and OpenCLIP: query, key and value in one, projections as (width, embedding width)."""
    names: dict[str, str | tuple[str, ...]] = {
        "visual.class_embedding": "vision.embedding.cls_token",
        "visual.conv1.weight": "vision.embedding.projection.weight",
        "visual.positional_embedding": POSITIONS,
        "token_embedding.weight": "text.embedding.tokens.weight",
        "positional_embedding": "text.embedding.positions",
        "visual.proj": "heads.vision.weight",
        "text_projection": "heads.text.weight",
        "logit_scale": "heads.logit_scale",
    }
    modules = {
        "visual.ln_pre": "vision.embedding.norm",
        "visual.ln_post": "vision.final_norm",
        "ln_final": "text.final_norm",
    }
    for stream, before, depth in (
        ("vision", "visual.transformer", backbone.vision_depth),
        ("text", "transformer", backbone.text_depth),
    ):
        for layer in range(depth):
            theirs, ours = f"{before}.resblocks.{layer}", f"{stream}.blocks.{layer}"
            for kind in KINDS:
                names[f"{theirs}.attn.in_proj_{kind}"] = tuple(
                    f"{ours}.attention.{part}.{stream}.{kind}" for part in ("query", "key", "value")
                )
            modules |= {
                f"{theirs}.attn.out_proj": f"{ours}.attention.output.{stream}",
                f"{theirs}.ln_1": f"{ours}.attention_norm.{stream}",
                f"{theirs}.ln_2": f"{ours}.ffn_norm.{stream}",
                f"{theirs}.mlp.c_fc": f"{ours}.ffn.{stream}.up",
                f"{theirs}.mlp.c_proj": f"{ours}.ffn.{stream}.down",
            }
    transposed = frozenset({"visual.proj", "text_projection"})
    return KeyMap(names=names | with_kinds(modules), dropped=_DROPPED, optional=[HEADS], transposed=transposed)


TRANSFORMERS_CLIP = FileFormat(
    name="CLIP",
    recognises=lambda state: (
        {
            "vision_model.embeddings.class_embedding",
            "vision_model.embeddings.patch_embedding.weight",
            "text_model.embeddings.token_embedding.weight",
        }
        <= state.keys()
    ),
    sizes=lambda state: sizes_of_file(
        state,
        "clip",
        "vision_model.embeddings.patch_embedding.weight",
        "text_model.embeddings.token_embedding.weight",
        "vision_model.encoder.layers",
        "text_model.encoder.layers",
    ),
    backbone_sizes=sizes_of_backbone,
    key_map=transformers_key_map,
    positions={POSITIONS: 1},
)

OPEN_CLIP = FileFormat(
    name="OpenCLIP",
    recognises=lambda state: (
        {"visual.class_embedding", "visual.conv1.weight", "token_embedding.weight"} <= state.keys()
    ),
    sizes=lambda state: sizes_of_file(
        state,
        "clip",
        "visual.conv1.weight",
        "token_embedding.weight",
        "visual.transformer.resblocks",
        "transformer.resblocks",
    ),
    backbone_sizes=sizes_of_backbone,
    key_map=open_clip_key_map,
    positions={POSITIONS: 1},
)
