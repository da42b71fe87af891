"""AdamW with the official parameter groups, and a cosine with linear warm-up.

Source: microsoft/unilm beit3 (`optim_factory.py`, `utils.cosine_scheduler`). Different from it: text
positions are not decayed, and layer-wise decay leaves adapters and heads alone (there, an adapter in the
lowest of 24 layers got 3e-5 of the learning rate).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from mwa_lightning.backbones.base import Backbone
from mwa_lightning.errors import ConfigError
from mwa_lightning.sharded_tensors import own_part
from mwa_lightning.tasks.model import AdaptedModel

BACKBONE = "backbone."
USUAL_WIDTH = 128  # of the backbone that the methods' learning rates were chosen on
LOGITS = ("heads.logit_scale", "heads.logit_bias")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParameterGroup:
    """Trainable parameters that share a learning rate and a weight decay.

    `scale` is the factor on the learning rate; `names` are those of the parameters in the model.
    """

    scale: float
    weight_decay: float
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]


class GatedAdamW(torch.optim.AdamW):
    """Fused AdamW whose step can be called off from the device, without asking the host.

    `gate` is None or a float tensor of one element on the parameters' device: where it is 1, the step changes
    neither weights nor state.
    """

    gate: Tensor | None = None

    def _init_group(self, group: dict[str, Any], *filled: list[Tensor] | bool) -> bool:
        """As in torch, but of sharded tensors this process's parts: a step takes each number by itself."""
        is_complex: bool = super()._init_group(group, *filled)
        for tensors in filled:
            if isinstance(tensors, list):  # up to torch 2.7 `amsgrad` stands among them
                tensors[:] = map(own_part, tensors)
        return is_complex

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the closure (forward and backward), then step unless the gate is closed; returns its result."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        # The fused kernels leave everything as it is where `found_inf` is 1. A gradient scaler sets it for
        # the time of this call; its finding stands beside ours.
        scaler_found: Tensor | None = getattr(self, "found_inf", None)
        if self.gate is not None:
            self.found_inf = self.gate if scaler_found is None else torch.maximum(self.gate, scaler_found)
        super().step()
        self.found_inf = scaler_found  # type: ignore[assignment]
        return result


def parameter_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float, logit_scale_factor: float = 1.0
) -> list[ParameterGroup]:
    """Group what trains in a model whose backbone lies under `backbone`; frozen parameters are in no group.

    Not decayed: tensors of less than two dimensions (norms, biases, logit scale) and those that the backbone
    names (CLS, positions). The learning rate of a backbone parameter is scaled by layer_decay to the power of the
    number of layers above it, that of the scale and the bias of the logits by `logit_scale_factor`; the factor of
    everything else is 1.
    """
    backbone = model.get_submodule(BACKBONE.removesuffix("."))
    assert isinstance(backbone, Backbone)
    found: dict[tuple[float, float], dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = name.removeprefix(BACKBONE) if name.startswith(BACKBONE) else None
        scale = logit_scale_factor if name in LOGITS else 1.0
        if inside is not None:
            scale = layer_decay ** backbone.layers_above(inside)
        decayed = parameter.ndim >= 2 and inside not in backbone.no_weight_decay
        found.setdefault((scale, weight_decay if decayed else 0.0), {})[name] = parameter
    return [
        ParameterGroup(scale, decay, tuple(members), tuple(members.values()))
        for (scale, decay), members in sorted(found.items())
    ]


def own_learning_rate(model: AdaptedModel) -> float:
    """The peak learning rate that a model's adapter method has for the width of its backbone.

    Inversely with the width, as for hidden weights under AdamW in Yang et al., "Tensor Programs V" (arXiv 2203.03466).
    """
    width = max(site.width for site in model.backbone.sites(model.backbone.streams))
    return model.adapter.learning_rate * USUAL_WIDTH / width


def cosine_with_warmup(step: int, *, total_steps: int, warmup_steps: int, floor: float) -> float:
    """The factor on the learning rate at a step that counts from 0.

    Linear from 0 to 1 over the warm-up, then half a cosine down to `floor` at the last step.
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_optimizer(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: Sequence[float],
    eps: float,
    layer_decay: float,
    logit_scale_factor: float = 1.0,
) -> GatedAdamW:
    """AdamW over `parameter_groups(model)`; each group keeps its `scale` and `names` in the optimizer.

    Raises ConfigError if nothing trains.
    """
    groups = parameter_groups(
        model, weight_decay=weight_decay, layer_decay=layer_decay, logit_scale_factor=logit_scale_factor
    )
    if not groups:
        raise ConfigError("nothing trains with this adapter: choose another, or evaluate with mwa-eval")
    return GatedAdamW(
        [
            {
                "params": list(group.parameters),
                "lr": lr * group.scale,
                "weight_decay": group.weight_decay,
                "scale": group.scale,
                "names": list(group.names),
            }
            for group in groups
        ],
        lr=lr,
        betas=(betas[0], betas[1]),
        eps=eps,
        fused=True,
    )


def optimizer_of(settings: DictConfig, model: nn.Module, *, lr: float) -> GatedAdamW:
    """The optimizer of a configuration's `optim`, at another learning rate."""
    return make_optimizer(
        model,
        lr=lr,
        weight_decay=settings.weight_decay,
        betas=settings.betas,
        eps=settings.eps,
        layer_decay=settings.layer_decay,
        logit_scale_factor=settings.get("logit_scale_factor", 1.0),  # which older runs do not say
    )


def make_scheduler(
    optimizer: torch.optim.Optimizer,
    *,
    lr: float,
    min_lr: float,
    total_steps: int,
    warmup_epochs: float,
    warmup_steps: int | None,
    steps_per_epoch: int,
) -> LambdaLR:
    """The schedule per optimizer step; `warmup_steps`, where given, overrides `warmup_epochs`.

    The layers' scales hold for `min_lr` too. A run that ends within its warm-up never reaches `lr`: it is
    told so.
    """
    warmup = round(warmup_epochs * steps_per_epoch) if warmup_steps is None else warmup_steps
    if warmup >= total_steps:
        key = "optim.warmup_epochs" if warmup_steps is None else "optim.warmup_steps"
        log.warning(
            "%s: the warm-up of %d steps does not end before the run of %d: the learning rate never reaches optim.lr",
            key,
            warmup,
            total_steps,
        )
    floor = min_lr / lr

    def factor(step: int) -> float:
        return cosine_with_warmup(step, total_steps=total_steps, warmup_steps=warmup, floor=floor)

    return LambdaLR(optimizer, factor)
