"""Whether a result is more than guessing gives."""

from __future__ import annotations

import math
from collections.abc import Mapping

# So many standard deviations above guessing are no guessing any more.
_CLEAR = 2.0


def no_better_than_guessing(metrics: Mapping[str, float], *, split: str, images: int, samples: int) -> str | None:
    """A line for people where the metrics of a split could come of guessing; None where they could not.

    Retrieval is compared with a random order, statements with always giving the most common answer in
    training. Both may be exceeded by two standard deviations of the share that so many queries give by chance.

    Args:
        metrics: Percent by name, `<split>/mean_recall` or `<split>/accuracy` among them.
        split: The split.
        images: Number of its images.
        samples: Number of its captions or statements.
    """
    accuracy, recall = metrics.get(f"{split}/accuracy"), metrics.get(f"{split}/mean_recall")
    if accuracy is not None and f"{split}/majority" in metrics:
        guessed = metrics[f"{split}/majority"]
        if accuracy <= guessed + _CLEAR * _deviation([guessed / 100], samples):
            return f"no better than always giving the same answer ({guessed:.2f})"
    elif recall is not None and images and samples:
        shares = _recalls_of_a_random_order(images, samples)
        guessed = 100 * sum(shares) / len(shares)
        if recall <= guessed + _CLEAR * _deviation(shares, images):
            return f"no better than a random order of {images:,} images and {samples:,} captions ({guessed:.2f})"
    return None


def worse_than_frozen(metrics: Mapping[str, float], *, split: str, images: int) -> str | None:
    """A line for people where the frozen model does better than the adapted one, beyond two deviations; else None.

    Args:
        metrics: Percent by name; `zero_shot/...` are those of the frozen model on the split.
        split: The split.
        images: Number of its images.
    """
    names = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
    if not images or not all(f"{prefix}/{name}" in metrics for prefix in (split, "zero_shot") for name in names):
        return None
    both = [[metrics[f"{prefix}/{name}"] / 100 for name in names] for prefix in ("zero_shot", split)]
    frozen, adapted = (100 * sum(shares) / len(shares) for shares in both)
    if adapted >= frozen - _CLEAR * math.hypot(*(_deviation(shares, images) for shares in both)):
        return None
    return (
        f"worse than the frozen model ({adapted:.2f}, frozen {frozen:.2f}): lower optim.lr, warm up, or train on more "
        "data; docs/training.md says why a run does not learn"
    )


def beside(metrics: Mapping[str, float], *, split: str, images: int, samples: int) -> dict[str, float]:
    """What stands beside the mean recall of a split: that of a random order, and the gain over the frozen model.

    Arguments are those of `no_better_than_guessing`; both are in percent, `gain` is there where both were measured.
    """
    recall, frozen = metrics.get(f"{split}/mean_recall"), metrics.get("zero_shot/mean_recall")
    if recall is None or not images or not samples:
        return {}
    shares = _recalls_of_a_random_order(images, samples)
    found = {"random_order/mean_recall": 100 * sum(shares) / len(shares)}
    return found if frozen is None else found | {"gain/mean_recall": recall - frozen}


def _recalls_of_a_random_order(images: int, texts: int) -> list[float]:
    """Expected Recall@1, 5, 10 both ways as shares, where each image has equally many texts."""
    own = max(1, round(texts / images))
    both = []
    for k in (1, 5, 10):
        missed = math.prod(max(0, texts - own - place) / (texts - place) for place in range(min(k, texts)))
        both += [1 - missed, min(1.0, k / images)]
    return both


def _deviation(shares: list[float], queries: int) -> float:
    """The standard deviation, in percent, of a share of so many queries; of several, at most that of their mean."""
    return 100 * math.sqrt(sum(share * (1 - share) for share in shares) / len(shares) / queries)
