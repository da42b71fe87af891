"""ModeX: experts for each modality, and coordinated experts where the modalities meet.

Source: zhangy0822/ModeX. There the arrangement differs from model to model, and the start is not the identity; that is
`variant="released"`. The standard variant is the idea behind it, on any backbone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from torch import nn

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.adapters.experts import CoordinatedExperts, CoordinatorForm, Expert, UnfusedExpert
from mwa_lightning.adapters.norms import reached_norms
from mwa_lightning.backbones.base import Backbone
from mwa_lightning.backbones.blocks import CrossAttention
from mwa_lightning.backbones.sites import Branch, Place, Site, Stream
from mwa_lightning.errors import ConfigError

Variant = Literal["standard", "released"]

# Of every weight matrix in the released code; it overwrites the zeros that its classes set.
RELEASED_DEVIATION = 0.02


class Owner(NamedTuple):
    """Which module a slot refers to: coordinated or not, and the branch that it is named after."""

    coordinated: bool
    branch: Branch


# Where the released code puts what. Two slots of a layer with the same owner share its weights.
_RELEASED_ON_VISION: dict[Place, Owner] = {
    Place("vision", "self_attn", "after"): Owner(False, "self_attn"),
    Place("vision", "ffn", "after"): Owner(False, "ffn"),
}
_RELEASED_ON_CROSS_ATTENTION: dict[Place, Owner] = {
    Place("fusion", "block", "input"): Owner(True, "cross_attn"),
    Place("fusion", "cross_attn", "after"): Owner(True, "cross_attn"),
}
# Text layers that also run as fusion layers (BLIP): nothing else.
RELEASED_ON_SHARED_LAYERS: Mapping[Place, Owner] = _RELEASED_ON_VISION | _RELEASED_ON_CROSS_ATTENTION
# Text layers below fusion layers (ALBEF).
RELEASED_ON_SEPARATE_LAYERS: Mapping[Place, Owner] = {
    **_RELEASED_ON_VISION,
    Place("text", "block", "input"): Owner(False, "self_attn"),
    Place("text", "self_attn", "after"): Owner(False, "self_attn"),
    Place("text", "ffn", "after"): Owner(False, "ffn"),
    **_RELEASED_ON_CROSS_ATTENTION,
    Place("fusion", "self_attn", "after"): Owner(False, "self_attn"),
    Place("fusion", "ffn", "after"): Owner(True, "ffn"),
}


class ModeX(AdapterMethod):
    """Experts after self-attention and feed-forward network; the norms that the task reaches train too.

    On the vision and text streams each site has an `Expert` of its own. On the fusion stream there are
    `CoordinatedExperts` where the modalities meet: after cross-attention and feed-forward network; or, where the
    streams share one sequence (BEiT-3), after its self-attention and feed-forward network, besides the streams' own.
    Before cross-attention the tokens of the fusion stream are text still and have an `Expert`. Backbones without a
    fusion stream get no coordinated experts. `first_layer` (from 0) is the lowest adapted layer; the norms below it
    stay frozen. Layers that merge two images have no pretrained weights: they train.

    The freshly attached standard variant leaves the backbone's outputs unchanged. `released` puts exactly the modules
    of the authors' code on ALBEF and BLIP, where it has them, drawn as it draws them: that is not the identity. There
    the heads of a contrastive task, which are known by their temperature, stay frozen but for it.

    Raises ConfigError for values that are not known, where no layer is left, and for `released` on another backbone.
    """

    learning_rate = 6e-3

    def __init__(
        self,
        *,
        variant: Variant = "standard",
        mid_dim: int = 16,
        coordinator: CoordinatorForm = "softmax",
        temperature: float = 10.0,
        first_layer: int = 0,
        modules_to_save: Sequence[str] | None = None,
    ) -> None:
        super().__init__(modules_to_save=modules_to_save)
        for key, value, options in (
            ("variant", variant, get_args(Variant)),
            ("coordinator", coordinator, get_args(CoordinatorForm)),
        ):
            if value not in options:
                raise ConfigError(f"adapter.{key}={value}: choose one of {', '.join(options)}")
        self.variant = variant
        self.mid_dim = mid_dim
        self.form: CoordinatorForm = coordinator
        self.temperature = temperature
        self.first_layer = first_layer
        self.experts = nn.ModuleDict()
        self.coordinated = nn.ModuleDict()

    def place(self, backbone: Backbone, heads: nn.Module, streams: Sequence[Stream]) -> None:
        """Put experts on the sites of `streams`, and let norms and merge layers train."""
        sites = self.require(
            backbone,
            (site for site in backbone.sites(streams) if site.layer >= self.first_layer),
            f"layers from {self.first_layer} up",
        )
        if self.variant == "released":
            self._place_released(backbone, heads, sites)
        else:
            self._place_standard(backbone, sites)
        for norm in reached_norms(backbone, streams, first_layer=self.first_layer):
            norm.requires_grad_(True)
        for module in backbone.modules():
            if isinstance(module, CrossAttention) and module.merge is not None and "fusion" in streams:
                module.merge.requires_grad_(True)

    def _place_standard(self, backbone: Backbone, sites: Sequence[Site]) -> None:
        for site in sites:
            if site.slot == "after":
                meeting = site.stream == "fusion" and (site.joint or site.branch != "self_attn")
                backbone.fill(site, self._owned(site, Owner(meeting, site.branch)))

    def _place_released(self, backbone: Backbone, heads: nn.Module, sites: Sequence[Site]) -> None:
        everywhere = backbone.sites(backbone.streams)
        fusion_layers = {site.layer for site in everywhere if site.branch == "cross_attn"}
        if not fusion_layers:
            raise ConfigError(
                f"adapter.variant=released: the released code has no arrangement for {backbone.name}, which has no "
                "cross-attention; take adapter.variant=standard, or backbone=blip_base or albef_base"
            )
        shared = fusion_layers & {site.layer for site in everywhere if site.stream == "text"}
        arrangement = RELEASED_ON_SHARED_LAYERS if shared else RELEASED_ON_SEPARATE_LAYERS
        for site in sites:
            if site.place in arrangement:
                backbone.fill(site, self._owned(site, arrangement[site.place]))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=RELEASED_DEVIATION)
                nn.init.zeros_(layer.bias)
        temperatures = [parameter for parameter in heads.parameters() if parameter.ndim == 0]
        if temperatures:
            heads.requires_grad_(False)
            for temperature in temperatures:
                temperature.requires_grad_(True)
        else:
            # Only a contrastive task runs texts alone.
            self.declared_unused = frozenset(
                f"adapter.experts.{key}.{name}"
                for key, expert in self.experts.items()
                if isinstance(expert, UnfusedExpert)
                for name, _ in expert.named_parameters()
            )

    def _owned(self, site: Site, owner: Owner) -> nn.Module:
        """The module of a site's owner, made where it is met first."""
        key = f"{site.stream}_{site.layer}_{owner.branch}"
        modules = self.coordinated if owner.coordinated else self.experts
        if key not in modules:
            if owner.coordinated:
                modules[key] = CoordinatedExperts(
                    width=site.width, mid_dim=self.mid_dim, coordinator=self.form, temperature=self.temperature
                )
            else:
                released_text_ffn = self.variant == "released" and (site.stream, owner.branch) == ("text", "ffn")
                kind = UnfusedExpert if released_text_ffn else Expert
                modules[key] = kind(width=site.width, mid_dim=self.mid_dim)
        return modules[key]
