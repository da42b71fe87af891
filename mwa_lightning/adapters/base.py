"""What every adapter method is: a rule that puts modules on a backbone's sites and says what else trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from torch import nn

from mwa_lightning.backbones.base import Backbone
from mwa_lightning.backbones.sites import Site, Stream
from mwa_lightning.errors import ConfigError, shorten


class AdapterMethod(nn.Module, ABC):
    """Base of the methods. A method owns its modules (`adapter.*`), whatever slots they fill.

    Subclasses implement `place`; its work begins from a frozen backbone and heads that train.

    Args:
        modules_to_save: Parts of the backbone that train too and are saved with the adapter, as in peft: each by its
            name, or the end of it, such as `tokens`, the vectors of the vocabulary.
    """

    # Peak learning rate on a backbone of 128 channels, of `optim.lr=auto`; a wider one gets less in proportion.
    learning_rate: float = 1e-3

    # Names (in the whole model) of trainable parameters that a task may leave without a gradient.
    declared_unused: frozenset[str] = frozenset()

    def __init__(self, *, modules_to_save: Sequence[str] | None = None) -> None:
        super().__init__()
        self.modules_to_save = tuple(modules_to_save or ())

    def attach(self, backbone: Backbone, heads: nn.Module, *, streams: Sequence[Stream]) -> None:
        """Put modules on the sites of `streams` and set what trains, in the backbone and in the heads too.

        Raises ConfigError naming method, backbone and site if a site that the method requires is missing, or a part of
        `modules_to_save`.
        """
        backbone.requires_grad_(False)
        heads.requires_grad_(True)
        self.place(backbone, heads, streams)
        for name in self.modules_to_save:
            parts = [part for path, part in backbone.named_modules() if f".{path}".endswith(f".{name}")]
            if not parts:
                raise ConfigError(
                    f"adapter.modules_to_save={name}: {backbone.name} has no part of this name; it has such as "
                    f"{shorten([path for path, part in backbone.named_modules() if path.count('.') == 1], 6)}"
                )
            for part in parts:
                part.requires_grad_(True)

    @abstractmethod
    def place(self, backbone: Backbone, heads: nn.Module, streams: Sequence[Stream]) -> None:
        """The method's own part of `attach`."""

    def require(self, backbone: Backbone, sites: Iterable[Site], what: str) -> list[Site]:
        """The given sites, as a list. Raises ConfigError if there are none."""
        found = list(sites)
        if not found:
            raise ConfigError(
                f"{type(self).__name__} needs {what}, and {backbone.name} offers none for this task; "
                "lower adapter.first_layer or choose another adapter"
            )
        return found
