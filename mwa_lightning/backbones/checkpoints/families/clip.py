"""The files of CLIP: with the names of Hugging Face's transformers, or with those of OpenAI and OpenCLIP.

OpenCLIP puts `text.` before the names of its text transformer where the model's configuration has `custom_text`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mwa_lightning.backbones.checkpoints.file_format import FileFormat, State
from mwa_lightning.backbones.checkpoints.key_map import KeyMap
from mwa_lightning.backbones.dual import DualEncoder

POSITIONS = "vision.embedding.positions"
HEADS = frozenset({"heads.vision.weight", "heads.text.weight", "heads.logit_scale"})
KINDS = ("weight", "bias")

# Counted positions and the causal mask, which are no weights; the sizes that OpenAI's own files carry; the bias of a
# CLIP that was trained with sigmoids, which moves all similarities alike.
_DROPPED = (
    re.compile(r"(vision|text)_model\.embeddings\.position_ids"),
    re.compile(r"(text\.)?attn_mask|input_resolution|context_length|vocab_size|logit_bias"),
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


Sizes = dict[str, int]


def described(form: str, sizes: Mapping[str, Any]) -> str:
    """The sizes that tell models apart, as a text to compare."""
    return (
        f"{form} of widths {sizes['vision_width']} and {sizes['text_width']}, depths {sizes['vision_depth']} and "
        f"{sizes['text_depth']}, vocabulary {sizes['vocabulary_size']}, patches of {sizes['patch_size']} px"
    )


def sizes_of_backbone(backbone: DualEncoder) -> str:
    """Those of a backbone, as `described`."""
    names = ("vision_width", "vision_depth", "text_width", "text_depth", "vocabulary_size", "patch_size")
    return described(backbone.form, {name: getattr(backbone, name) for name in names})


@dataclass(frozen=True)
class Layout:
    """Where a kind of file has what tells its sizes; of layers, what stands before their number, then the rest."""

    form: str
    patches: str
    positions: str
    tokens: str
    text_positions: str
    layers: tuple[str, str]
    up: tuple[str, str]  # the first linear layer of a feed-forward network, of both streams
    projection: str  # (embedding width, width of texts), either way round

    def sizes(self, state: State) -> Sizes:
        """The sizes of a file, by the keys of a backbone's configuration; `cells` are the rows of its grid."""

        def depth(before: str) -> int:
            pattern = re.compile(re.escape(before) + r"\.(\d+)\.")
            return 1 + max((int(found[1]) for key in state if (found := pattern.match(key))), default=-1)

        def hidden(stream: int) -> int:
            weight = state.get(f"{self.layers[stream]}.0.{self.up[stream]}.weight")
            return 0 if weight is None or not weight.ndim else weight.shape[0]

        kernel, table = state[self.patches], state[self.tokens]
        text_positions, positions = (
            0 if key not in state or state[key].ndim < 2 else state[key].shape[-2]
            for key in (self.text_positions, self.positions)
        )
        projection = state.get(self.projection)
        joint = kernel.shape[0]
        if self.form == "clip" and projection is not None and projection.ndim == 2:
            joint = projection.shape[1] if projection.shape[0] == table.shape[1] else projection.shape[0]
        return {
            "vision_width": kernel.shape[0],
            "vision_depth": depth(self.layers[0]),
            "vision_ffn_width": hidden(0),
            "text_width": table.shape[1],
            "text_depth": depth(self.layers[1]),
            "text_ffn_width": hidden(1),
            "embedding_width": joint,
            "patch_size": kernel.shape[-1],
            "vocabulary_size": table.shape[0],
            "text_positions": text_positions,
            "cells": positions - (self.form == "clip"),
        }

    def recognises(self, state: State, *also: str) -> bool:
        """Whether a file has images and texts, by these names, and `also` these tensors."""
        if not {self.patches, self.tokens, *also} <= state.keys():
            return False
        return state[self.patches].ndim == 4 and state[self.tokens].ndim == 2


def dual_format(
    name: str, layout: Layout, key_map: Callable[[DualEncoder], KeyMap], *also: str, rows_before: int
) -> FileFormat:
    """One kind of file of two transformers; it has `also` these tensors."""
    return FileFormat(
        name=name,
        anchor=layout.patches,
        recognises=lambda state: layout.recognises(state, *also),
        sizes=lambda state: described(layout.form, layout.sizes(state)),
        settings=lambda state: {"form": layout.form, **layout.sizes(state)},
        backbone_sizes=sizes_of_backbone,
        key_map=key_map,
        positions={POSITIONS: rows_before},
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


def open_clip_key_map(backbone: DualEncoder, text: str = "") -> KeyMap:
    """The names of OpenAI's CLIP and OpenCLIP: query, key and value in one, projections as (width, embedding width).

    `text` stands before the names of what belongs to texts.
    """
    names: dict[str, str | tuple[str, ...]] = {
        "visual.class_embedding": "vision.embedding.cls_token",
        "visual.conv1.weight": "vision.embedding.projection.weight",
        "visual.positional_embedding": POSITIONS,
        "visual.proj": "heads.vision.weight",
        f"{text}text_projection": "heads.text.weight",
        "logit_scale": "heads.logit_scale",
    }
    modules = {"visual.ln_pre": "vision.embedding.norm", "visual.ln_post": "vision.final_norm"}
    names |= with_kinds(modules) | open_clip_text(text, backbone.text_depth)
    names |= blocks_of_open_clip("visual.transformer", "vision", backbone.vision_depth)
    transposed = frozenset({"visual.proj", f"{text}text_projection"})
    return KeyMap(names=names, dropped=_DROPPED, optional=[HEADS], transposed=transposed)


def open_clip_text(before: str, depth: int) -> dict[str, str | tuple[str, ...]]:
    """The text transformer as OpenCLIP names it, without its projection."""
    return {
        f"{before}token_embedding.weight": "text.embedding.tokens.weight",
        f"{before}positional_embedding": "text.embedding.positions",
        **with_kinds({f"{before}ln_final": "text.final_norm"}),
        **blocks_of_open_clip(f"{before}transformer", "text", depth),
    }


def blocks_of_open_clip(before: str, stream: str, depth: int) -> dict[str, str | tuple[str, ...]]:
    """The blocks of one stream as OpenAI and OpenCLIP name them."""
    names: dict[str, str | tuple[str, ...]] = {}
    for layer in range(depth):
        theirs, ours = f"{before}.resblocks.{layer}", f"{stream}.blocks.{layer}"
        for kind in KINDS:
            names[f"{theirs}.attn.in_proj_{kind}"] = tuple(
                f"{ours}.attention.{part}.{stream}.{kind}" for part in ("query", "key", "value")
            )
        names |= with_kinds(
            {
                f"{theirs}.attn.out_proj": f"{ours}.attention.output.{stream}",
                f"{theirs}.ln_1": f"{ours}.attention_norm.{stream}",
                f"{theirs}.ln_2": f"{ours}.ffn_norm.{stream}",
                f"{theirs}.mlp.c_fc": f"{ours}.ffn.{stream}.up",
                f"{theirs}.mlp.c_proj": f"{ours}.ffn.{stream}.down",
            }
        )
    return names


def transformers_layout(form: str) -> Layout:
    """Where transformers' CLIPModel and SiglipModel have what tells their sizes."""
    return Layout(
        form=form,
        patches="vision_model.embeddings.patch_embedding.weight",
        positions="vision_model.embeddings.position_embedding.weight",
        tokens="text_model.embeddings.token_embedding.weight",
        text_positions="text_model.embeddings.position_embedding.weight",
        layers=("vision_model.encoder.layers", "text_model.encoder.layers"),
        up=("mlp.fc1", "mlp.fc1"),
        projection="text_projection.weight",
    )


def _open_clip_layout(text: str) -> Layout:
    return Layout(
        form="clip",
        patches="visual.conv1.weight",
        positions="visual.positional_embedding",
        tokens=f"{text}token_embedding.weight",
        text_positions=f"{text}positional_embedding",
        layers=("visual.transformer.resblocks", f"{text}transformer.resblocks"),
        up=("mlp.c_fc", "mlp.c_fc"),
        projection=f"{text}text_projection",
    )


TRANSFORMERS_CLIP = dual_format(
    "CLIP",
    transformers_layout("clip"),
    transformers_key_map,
    "vision_model.embeddings.class_embedding",
    rows_before=1,
)
OPEN_CLIP, OPEN_CLIP_TEXT = (
    dual_format(
        "OpenCLIP",
        _open_clip_layout(text),
        partial(open_clip_key_map, text=text),
        "visual.class_embedding",
        rows_before=1,
    )
    for text in ("", "text.")
)
