"""Where an adapter on the form of a backbone for two images begins as one on its form for one."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.backbones.base import Backbone
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.backbones.sites import Place, Stream


class Location(NamedTuple):
    """A slot of a layer, by the number that sites know it by."""

    stream: Stream
    layer: int
    place: Place


def slot_owners(backbone: Backbone, adapter: nn.Module) -> dict[Location, str]:
    """The names in the adapter of the modules that fill the backbone's slots."""
    names = {id(module): name for name, module in adapter.named_modules()}
    return {
        Location(stream, layer, place): names[id(module)]
        for stream in backbone.streams
        for layer, block in backbone.layers(stream)
        for place, module in block.slots.items()
        if place.stream == stream
    }


def one_image_sources(model: nn.Module, backbone: FusionEncoder, adapter: AdapterMethod) -> dict[str, str]:
    """For each trainable parameter of a model for two images, its name in a file of the form for one.

    A layer begins with the weights of a layer of that form, and so with its adapter. A module that several layers share
    is left out where these begin as layers whose modules are not one: ALBEF's fusion layers count anew, its vision
    layers do not.

    Args:
        model: Has its backbone, in the form for two images, as `backbone` and its adapter as `adapter`.
        backbone: The same backbone in the form for one image, `adapter` attached; of both only the names matter.
        adapter: The same method.
    """
    pair = model.get_submodule("backbone")
    assert isinstance(pair, FusionEncoder)
    theirs = slot_owners(backbone, adapter)
    begins_as: dict[str, set[str | None]] = {}
    for (stream, layer, place), module in slot_owners(pair, model.get_submodule("adapter")).items():
        before = layer if stream == "vision" else pair.one_image_layer(layer)
        begins_as.setdefault(module, set()).add(theirs.get(Location(stream, before, place)))

    def source(name: str) -> str | None:
        part, _, rest = name.partition(".")
        if part == "backbone":
            known = pair.one_image_name(rest)
            return None if known is None else f"backbone.{known}"
        module = next((module for module in begins_as if part == "adapter" and rest.startswith(f"{module}.")), None)
        if module is None:
            return name
        (known, *others) = begins_as[module]
        return None if known is None or others else f"adapter.{known}{rest.removeprefix(module)}"

    found = {name: source(name) for name, value in model.named_parameters() if value.requires_grad}
    return {name: before for name, before in found.items() if before is not None}
