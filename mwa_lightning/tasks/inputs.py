"""What callers give a model: checked in one line each, and brought to where the model is."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from mwa_lightning.backbones.base import Backbone
from mwa_lightning.errors import ConfigError

log = logging.getLogger(__name__)

_MOST = 20.0  # no normalised image has such values


def checked_images(images: Any, backbone: Backbone, *, axes: str = "b, 3, s, s") -> Tensor:
    """Images on the device of the model: uint8, or normalised; the last axes are (3, s, s), as many as named.

    Raises:
        ConfigError: In one line: they are of another form, size or range.
    """
    size = backbone.image_size
    if not isinstance(images, Tensor):
        raise ConfigError(f"images are a tensor ({axes}), not {type(images).__name__}: transform([...]) makes one")
    if images.ndim != len(axes.split(",")):
        more = "; images[None] makes a batch of one" if images.ndim == len(axes.split(",")) - 1 else ""
        raise ConfigError(f"images are a tensor ({axes}), not one of shape {tuple(images.shape)}{more}")
    if tuple(images.shape[-3:]) != (3, size, size):
        if images.shape[-1] == 3:
            raise ConfigError(
                f"images are ({axes}), not of shape {tuple(images.shape)}: channels come before the sides"
            )
        raise ConfigError(
            f"images of shape {tuple(images.shape)} do not fit: this model takes 3 x {size} x {size}, which its "
            "transform makes; load(..., image_size=...) makes it take others"
        )
    if images.is_floating_point():
        _check_range(images)
    elif images.dtype != torch.uint8:
        raise ConfigError(f"images are uint8 from 0 to 255, or normalised and floating, not {images.dtype}")
    return images.to(backbone.image_mean.device)


def checked_texts(ids: Any, mask: Any, backbone: Backbone) -> tuple[Tensor, Tensor | None]:
    """Token ids and mask on the device of the model; the mask as bool. What a tokenizer gives may stand for both.

    Raises:
        ConfigError: In one line: they are of another form, or the ids are not of this backbone.
    """
    if isinstance(ids, tuple) and len(ids) == 2:
        ids, mask = ids
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        form = f"of shape {tuple(ids.shape)}, {ids.dtype}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ConfigError(
            f"texts are token ids (b, n), whole numbers, not {form}: tokenizer([...]) gives them and a mask"
        )
    if mask is MISSING:
        raise ConfigError(
            "texts need their mask too: give *tokenizer(texts), which has both, or None as the mask where every token "
            "is real"
        )
    if ids.shape[1] > backbone.text_positions:
        raise ConfigError(
            f"texts of {ids.shape[1]} tokens: {backbone.name} has positions for {backbone.text_positions}; take the "
            "tokenizer that was loaded with it"
        )
    device = backbone.image_mean.device
    if not torch.compiler.is_compiling() and ids.device.type == "cpu" and ids.numel():
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= backbone.vocabulary_size:
            raise ConfigError(
                f"token ids from {low} to {high}: {backbone.name} knows 0 to {backbone.vocabulary_size - 1}; take the "
                "tokenizer that was loaded with it"
            )
    if mask is None:
        return ids.to(device), None
    if not isinstance(mask, Tensor) or mask.shape != ids.shape or mask.is_floating_point():
        form = f"of shape {tuple(mask.shape)}, {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ConfigError(
            f"the mask of texts is bool, True on real tokens, of the shape {tuple(ids.shape)} of their ids, not {form}"
        )
    return ids.to(device), mask.bool().to(device)


def check_statements(images: Tensor, ids: Tensor, *, each: int) -> None:
    """Raise ConfigError unless images (b, k, 3, s, s) are `each` for each of the texts, ids (b, n)."""
    if images.shape[:2] != (len(ids), each):
        raise ConfigError(
            f"images of shape {tuple(images.shape)} do not fit: this model takes {each} with each text, so of "
            f"{len(ids)} text{'' if len(ids) == 1 else 's'} {(len(ids), each, *images.shape[2:])}"
        )


class Missing:
    """The type of `MISSING`."""


MISSING = Missing()  # where a caller gave no mask


def _check_range(images: Tensor) -> None:
    """Raise ConfigError for values up to 255; say so where it looks as if they were from 0 to 1."""
    if torch.compiler.is_compiling() or not images.numel():
        return
    low, high = (value.item() for value in images.detach().aminmax())
    if high > _MOST:
        raise ConfigError(
            f"floating images are taken as normalised, and these go up to {high:g}: give uint8, as transform does"
        )
    if 0 <= low <= high <= 1:
        log.warning(
            "floating images from %.3g to %.3g are taken as normalised; if they are not, give uint8, as transform does",
            low,
            high,
        )
