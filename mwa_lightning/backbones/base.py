"""What every backbone is: blocks that its streams run through, and the sites that these offer to adapters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mwa_lightning.backbones.blocks import Block
from mwa_lightning.backbones.sites import PLACES, Site, SlotModule, Stream
from mwa_lightning.errors import ConfigError

Family = Literal["multiway", "dual", "fusion"]


class Backbone(nn.Module):
    """Base of the backbones; as constructed the weights are random, a checkpoint fills them.

    A subclass says which blocks a stream runs through (`layers`) and offers `encode_image`, `encode_text` and, where
    its streams include `fusion`, `fuse`. `text_positions` is how many tokens its table of positions has
    room for. With `leaves_rest` patches need not fill an image: what is left at its right and lower edge is not seen.
    Raises ConfigError if the patch size does not divide the image size otherwise, or texts may be longer than that.

    Attributes:
        family: Which heads and files fit it.
        streams: The kinds of tokens it has layers for.
        joint_streams: Those whose sites act on a sequence of several streams, besides the sites of these.
        unreachable: Parameters that no task reaches: they stay frozen whatever the adapter method trains.
        no_weight_decay: Parameters that do not decay, besides the 1-D ones.
        fingerprint: Of the weights as they were read from their file; set by whoever loads them.
        one_image_fingerprint: In a form for two images that was filled from a file for one, that of the form for one.
    """

    family: ClassVar[Family]
    streams: tuple[Stream, ...]
    joint_streams: ClassVar[frozenset[Stream]] = frozenset()
    unreachable: frozenset[str] = frozenset()
    no_weight_decay: frozenset[str] = frozenset()

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        *,
        name: str,
        patch_size: int,
        image_size: int,
        vocabulary_size: int,
        text_positions: int,
        max_text_length: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        leaves_rest: bool = False,
    ) -> None:
        super().__init__()
        if image_size < patch_size:
            raise ConfigError(
                f"backbone.image_size={image_size}: less than one patch of {patch_size} pixels; take a multiple of that"
            )
        if image_size % patch_size and not leaves_rest:
            below = image_size // patch_size * patch_size
            raise ConfigError(
                f"backbone.image_size={image_size}: the patch size {patch_size} does not divide it; "
                f"take {below} or {below + patch_size}"
            )
        if max_text_length > text_positions:
            raise ConfigError(
                f"backbone.max_text_length={max_text_length}: {name} has positions for {text_positions} tokens; "
                "take at most that many"
            )
        self.name = name
        self.patch_size = patch_size
        self.image_size = image_size
        self.vocabulary_size = vocabulary_size
        self.text_positions = text_positions
        self.max_text_length = max_text_length
        self.fingerprint = "random"
        self.one_image_fingerprint: str | None = None
        self.register_buffer("image_mean", torch.tensor(list(image_mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(list(image_std)).view(3, 1, 1), persistent=False)

    @abstractmethod
    def layers(self, stream: Stream) -> Sequence[tuple[int, Block]]:
        """The blocks that a stream runs through, with the numbers that sites and users know them by (from 0)."""

    @property
    @abstractmethod
    def embeddings(self) -> Sequence[nn.Module]:
        """What makes tokens of images and of texts, below the blocks."""

    @abstractmethod
    def layers_above(self, parameter_name: str) -> int:
        """How many layers stand above a parameter, for layer-wise decay: 0 above the last block, 1 in it, and so on."""

    @abstractmethod
    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images (b, 3, s, s), uint8 or normalised, as tokens (b, k, d)."""

    @abstractmethod
    def encode_text(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Encode ids (b, n), int64, with mask (b, n), True on real tokens, as tokens (b, n, d)."""

    def sites(self, streams: Collection[Stream]) -> list[Site]:
        """Every place for an adapter on the given streams, from the lowest layer up."""
        found = [
            Site(stream, layer, branch, slot, block.width, joint=stream in self.joint_streams)
            for stream in self.streams
            if stream in streams
            for layer, block in self.layers(stream)
            for branch, slot in PLACES
            if branch != "cross_attn" or (stream == "fusion" and block.cross_attention is not None)
        ]
        return sorted(found, key=lambda site: site.layer)

    def fill(self, site: Site, module: SlotModule) -> None:
        """Put a module on a site; the backbone does not own it."""
        dict(self.layers(site.stream))[site.layer].fill(site.place, module)

    def normalize(self, images: Tensor) -> Tensor:
        """Bring uint8 images (b, 3, s, s) to the pretrained range; images of a floating type are in it already.

        They get the type of the model, as after `.half()`.
        """
        if not images.is_floating_point():
            images = (images.float() / 255 - self.image_mean) / self.image_std
        return images.to(self.image_mean.dtype)
