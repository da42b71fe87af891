"""What the files of BLIP and ALBEF have in common: the names of the vision transformer, of BERT and of the heads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from mwa_lightning.backbones.checkpoints.file_format import FileFormat, State
from mwa_lightning.backbones.checkpoints.key_map import KeyMap
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.backbones.sites import Stream

Modules = dict[str, tuple[str, ...]]

POSITIONS = "vision_embedding.positions"
TOKEN_TYPES = "text_embedding.token_types"
# Of retrieval, by the file's names; then of NLVR2 and entailment.
PROJECTIONS: Modules = {"vision_proj": ("heads.vision",), "text_proj": ("heads.text",)}
MATCHING: Modules = {"itm_head": ("heads.matching",)}
CLASSES: Modules = {"cls_head.0": ("heads.hidden",), "cls_head.2": ("heads.output",)}

# Momentum copies and queues of pretraining, counters, and the heads and decoders of other tasks. Then what the released
# ModeX code adds to a file, which is read as adapter.checkpoint instead.
DROPPED = (
    re.compile(r"\w+_m\..+"),
    re.compile(r"(image|text|idx)_queue|queue_ptr|ptr_queue"),
    re.compile(r".+\.position_ids"),
    re.compile(r"text_encoder\.(bert\.)?(cls|pooler)\..+"),
    re.compile(r"(text_decoder|ta_head)\..+"),
    re.compile(r".+\.modex\..+"),
)
_LAYER = re.compile(r"text_(?:encoder|model)\.(?:bert\.)?encoder\.layer\.(\d+)\.(crossattention\.)?")


def official_vision_modules(depth: int) -> Modules:
    """The modules of the vision transformer, by the names of the original code."""
    modules: Modules = {
        "visual_encoder.patch_embed.proj": ("vision_embedding.projection",),
        "visual_encoder.norm": ("vision_norm",),
    }
    for layer in range(depth):
        modules |= vision_block_modules(
            f"visual_encoder.blocks.{layer}", layer, ("attn.qkv", "attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2")
        )
    return modules


def vision_block_modules(theirs: str, layer: int, parts: Sequence[str]) -> Modules:
    """The modules of one block; `parts` names those for qkv, output, the two norms and the two layers of the FFN."""
    ours = f"vision_blocks.{layer}"
    places = (
        tuple(f"{ours}.attention.{part}.vision" for part in ("query", "key", "value")),
        (f"{ours}.attention.output.vision",),
        (f"{ours}.attention_norm.vision",),
        (f"{ours}.ffn_norm.vision",),
        (f"{ours}.ffn.vision.up",),
        (f"{ours}.ffn.vision.down",),
    )
    return {f"{theirs}.{part}": place for part, place in zip(parts, places, strict=True)}


def text_layer_modules(theirs: str, layers: Sequence[int], stream: Stream) -> Modules:
    """The modules of one BERT layer of a file but for its cross-attention; it fills each of our `layers`."""
    parts = {
        **{f"attention.self.{part}": f"attention.{part}.{stream}" for part in ("query", "key", "value")},
        "attention.output.dense": f"attention.output.{stream}",
        "attention.output.LayerNorm": f"attention_norm.{stream}",
        "intermediate.dense": f"ffn.{stream}.up",
        "output.dense": f"ffn.{stream}.down",
        "output.LayerNorm": f"ffn_norm.{stream}",
    }
    return {
        f"{theirs}.{part}": tuple(f"text_blocks.{layer}.{ours}" for layer in layers) for part, ours in parts.items()
    }


def fusion_key_map(
    *,
    modules: Modules,
    repeated: Iterable[str] = (),
    tables: dict[str, str],
    new: Sequence[frozenset[str]] = (),
    dropped: Sequence[re.Pattern[str]] = DROPPED,
) -> KeyMap:
    """The key map of modules with weight and bias, and of single tensors (`tables`), with the heads.

    A module that is named in `repeated` goes whole to each of its places. `new` are further groups that a file may
    lack.
    """
    modules = modules | PROJECTIONS | MATCHING | CLASSES
    names: dict[str, str | tuple[str, ...]] = dict(tables)
    names |= {f"{key}.{kind}": tuple(f"{o}.{kind}" for o in ours) for key, ours in modules.items() for kind in KINDS}
    names["temp"] = "heads.logit_scale"
    return KeyMap(
        names=names,
        dropped=dropped,
        optional=[
            *(_tensors(group) for group in (PROJECTIONS, MATCHING)),
            frozenset({"heads.logit_scale"}),
            frozenset({TOKEN_TYPES}),
            *new,
        ],
        task_shaped=[_tensors(CLASSES)],
        repeated=frozenset(f"{key}.{kind}" for key in repeated for kind in KINDS),
        converted={"temp": _log_scale} | {key: _first for key, ours in tables.items() if ours == POSITIONS},
    )


def fusion_format(
    *,
    name: str,
    recognises: Callable[[State], bool],
    key_map: Callable[[FusionEncoder], KeyMap],
    patches: str = "visual_encoder.patch_embed.proj.weight",
    pair: bool = False,
) -> FileFormat:
    """One kind of file; `patches` is its tensor of the patches, and `pair` says that it is for two images.

    A file for one image also fills the form for two, so what the backbone is compared with is its form for one.
    """

    def sizes(state: State) -> str:
        tokens = next(state[key] for key in state if key.endswith("embeddings.word_embeddings.weight"))
        first, count = text_layers(state)
        return _sizes(state[patches], tokens, count, first) + (", for two images" if pair else "")

    def backbone_sizes(backbone: FusionEncoder) -> str:
        images = backbone.images if pair else 1
        count = backbone.text_layers + images * backbone.fusion_layers
        found = _sizes(
            backbone.vision_embedding.projection.weight,
            backbone.text_embedding.tokens.weight,
            count,
            backbone.first_fusion_layer,
        )
        return found + (", for two images" if pair and backbone.pair else "")

    return FileFormat(
        name=name,
        anchor=patches,
        recognises=recognises,
        sizes=sizes,
        backbone_sizes=backbone_sizes,
        key_map=key_map,
        positions={POSITIONS: 1},
    )


def text_layers(state: State) -> tuple[int, int]:
    """The lowest text layer with cross-attention, -1 if there is none, and the number of text layers."""
    found = [match for key in state if (match := _LAYER.match(key))]
    crossing = [int(match[1]) for match in found if match[2]]
    return min(crossing, default=-1), 1 + max((int(match[1]) for match in found), default=-1)


KINDS = ("weight", "bias")


def _tensors(modules: Modules) -> frozenset[str]:
    return frozenset(f"{ours}.{kind}" for places in modules.values() for ours in places for kind in KINDS)


def _first(table: Tensor) -> Tensor:
    """(1, n, d) as (n, d)."""
    return table[0]


def _log_scale(temperature: Tensor) -> Tensor:
    """The files' temperature divides the similarities; ours is the logarithm of the factor."""
    return -temperature.float().log()


def _sizes(patches: Tensor, tokens: Tensor, count: int, first: int) -> str:
    return (
        f"widths {patches.shape[0]} and {tokens.shape[1]}, vocabulary {tokens.shape[0]}, patches of "
        f"{patches.shape[-1]} px, {count} text layers that see the image from layer {first} up"
    )
