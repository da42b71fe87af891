"""What to change in the configuration of a run that does not learn."""

from __future__ import annotations

from omegaconf import DictConfig

from mwa_lightning.training.watching.verdicts import Finding

# A start so far above knowing nothing, as a share of it, says that the scale of the logits does not fit.
_FAR_ABOVE = 1.2
# A loss that has moved by less, as a share of that at the start, was hardly trained.
_MOVED = 0.02


def advise(config: DictConfig, finding: Finding, rate: float) -> str:
    """The keys to change, of those that there are and that are not so already, the most promising first.

    `rate` is the highest learning rate so far, where the configuration does not say it.
    """
    peak = rate if isinstance(config.optim.lr, str) else float(config.optim.lr)
    keys = {"collapsed": _collapsed, "dead": _dead, "diverging": _diverging, "stuck": _stuck}[finding.kind](
        config, finding, peak
    )
    return f"set {' or '.join(keys)}" if keys else "look at the data: does what belongs together differ from the rest?"


def _collapsed(config: DictConfig, finding: Finding, peak: float) -> list[str]:
    return [*_fitted(config, finding), *_gentler(config, peak)]


def _diverging(config: DictConfig, finding: Finding, peak: float) -> list[str]:
    clipped = [] if config.trainer.gradient_clip_val else ["trainer.gradient_clip_val=1"]
    return [*_gentler(config, peak), *clipped]


def _dead(config: DictConfig, finding: Finding, peak: float) -> list[str]:
    if not finding.knowing_nothing:
        return ["data.batch_size=64"] if config.data.batch_size == 1 else []
    scale = config.adapter.get("scale") if finding.of == "adapter" else None
    return ["adapter.scale=0.6"] if scale is not None and scale < 0.01 else _gentler(config, peak)


def _stuck(config: DictConfig, finding: Finding, peak: float) -> list[str]:
    moved = abs(finding.loss - finding.loss_at_start) > _MOVED * finding.loss_at_start
    if moved and finding.loss > _FAR_ABOVE * finding.knowing_nothing:
        return [*_fitted(config, finding), *_gentler(config, peak)]
    longer = f"trainer.max_epochs={2 * config.trainer.max_epochs}"
    return [*_fitted(config, finding), f"optim.lr={3 * peak:.1g}", longer]


def _fitted(config: DictConfig, finding: Finding) -> list[str]:
    """A scale of the logits that fits, where the run began far above knowing nothing."""
    scale = config.task.get("logit_scale")
    ill_fitting = finding.loss_at_start > _FAR_ABOVE * finding.knowing_nothing
    return ["task.logit_scale=fitted"] if scale not in (None, "fitted") and ill_fitting else []


def _gentler(config: DictConfig, peak: float) -> list[str]:
    """A lower learning rate; a warm-up, or else a weaker adapter."""
    keys = [f"optim.lr={peak / 3:.1g}"]
    if not (config.optim.warmup_epochs or config.optim.warmup_steps):
        keys.append("optim.warmup_epochs=0.5")
    elif config.adapter.get("scale", 0) > 0.1:
        keys.append(f"adapter.scale={config.adapter.scale / 2:.2g}")
    return keys
