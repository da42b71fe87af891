"""What a backbone's configuration leaves to the files of its weights is filled in from them, before anything is built.

A key that is null is as the files say, or, where these say nothing, as is usual for the kind of model. A key that has a
value stays as it is, and where the files say otherwise, a line says so.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, ListConfig

from mwa_lightning.backbones.checkpoints import read_model, weights_file
from mwa_lightning.backbones.checkpoints.beside import said_beside
from mwa_lightning.backbones.dual import USUAL, DualEncoder
from mwa_lightning.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)

RANDOM = "random"
SIZES = (
    *(f"{stream}_{size}" for stream in ("vision", "text") for size in ("width", "depth", "heads", "ffn_width")),
    *("embedding_width", "patch_size", "vocabulary_size", "text_positions"),
)
# What is told in a line where the files say otherwise; other resolutions are what positions are interpolated for.
_OF_THE_MODEL = ("activation", "norm_epsilon", "image_mean", "image_std", "resize", "interpolation")


def settle_weights(config: DictConfig) -> None:
    """Fill the keys of `backbone` that are null from the files of its weights, in place, and say what they said.

    Raises CheckpointError if there are no such weights or if they are of another kind, ConfigError if a key must be
    given that no file tells.
    """
    node = config.backbone
    if not issubclass(get_class(node._target_), DualEncoder) or node.checkpoint is None:
        return
    said = {} if node.checkpoint == RANDOM else _said(node)
    taken = []
    for key, (value, _) in said.items():
        if key in node and node[key] is None:
            node[key] = value
            taken.append(f"backbone.{key}={_shown(value)}")
    _complete(node)
    if taken:
        log.info("from %s and what stands beside it: %s", node.checkpoint, ", ".join(taken))
    for key in ("vision_heads", "text_heads"):
        if key in said and node[key] != said[key][0]:
            value, where = said[key]
            raise ConfigError(f"backbone.{key}={node[key]}: {where} says {value}; set backbone.{key}={value}")
    for key in _OF_THE_MODEL:
        if key in said and not _same(node[key], said[key][0]):
            value, where = said[key]
            log.warning("backbone.%s=%s is as it was set, but %s says %s", key, _shown(node[key]), where, _shown(value))


def _said(node: DictConfig) -> dict[str, tuple[Any, str]]:
    """What the weights and the files beside them say, and which of them says it."""
    file = weights_file(node.checkpoint)
    found = read_model(node.checkpoint, "dual", key=node.get("checkpoint_key"), shapes_only=True)
    assert found.form.settings is not None
    sizes = found.form.settings(found.state)
    if sizes["form"] != node.form:
        kinds = {"clip": "a CLIP", "siglip": "a SigLIP"}
        raise CheckpointError(
            f"{file}: is {kinds[sizes['form']]}, and backbone={node.name} {kinds[node.form]}; choose "
            f"backbone={sizes['form']}"
        )
    said = {key: (value, str(file)) for key, value in sizes.items() if value and key in SIZES}
    for path, values in said_beside(file, sizes, open_clip=found.form.name.startswith("OpenCLIP")).items():
        said |= {key: (value, str(path)) for key, value in values.items()}
    side = math.isqrt(max(sizes["cells"], 0))
    patch = sizes["patch_size"]
    if side and ("image_size" not in said or said["image_size"][0] // patch != side):
        said["image_size"] = (side * patch, str(file))
    return said


def _complete(node: DictConfig) -> None:
    """What neither the configuration nor a file says, and is usual. Raises ConfigError for sizes that are not."""
    for key, value in USUAL[node.form].items():
        if key in node and node[key] is None:
            node[key] = value
    for stream in ("vision", "text"):
        key, width = f"{stream}_heads", node[f"{stream}_width"]
        if node[key] is None and width is not None:
            heads = _usual_heads(width, wide=stream == "vision" or node.form == "siglip")
            if heads is None:
                raise ConfigError(
                    f"backbone.{key} is not set, and no file beside {node.checkpoint} says how many attention heads "
                    f"the width {width} has; set it"
                )
            node[key] = heads
            log.info("backbone.%s=%s, as is usual for the width %s", key, heads, width)
    if node.max_text_length is None:
        node.max_text_length = node.text_positions
    missing = [f"backbone.{key}" for key in SIZES if node[key] is None]
    if missing:
        why = (
            "random weights have no file to read it from" if node.checkpoint == RANDOM else "the weights do not say it"
        )
        raise ConfigError(
            f"{missing[0]} is not set, and {why}; set {'it' if len(missing) == 1 else ', '.join(missing)}, or choose a "
            "backbone of a size"
        )


def _usual_heads(width: int, *, wide: bool) -> int | None:
    """64 channels a head; the larger models that are known have 16 heads, but for the texts of CLIP."""
    if wide and width in (1152, 1280, 1408, 1536, 1664, 1792):
        return 16
    return width // 64 if width % 64 == 0 and width >= 256 else None


def _shown(value: Any) -> str:
    return f"[{','.join(f'{number:g}' for number in value)}]" if isinstance(value, list | ListConfig) else str(value)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list | ListConfig):
        return len(one) == len(other) and all(map(_same, one, other))
    return math.isclose(one, other, rel_tol=1e-6) if isinstance(one, float) else bool(one == other)
