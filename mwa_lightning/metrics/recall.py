"""Recall@K of image-text retrieval, as the official BEiT-3 evaluation defines it, in percent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from mwa_lightning.errors import DataError, NotFinite
from mwa_lightning.metrics.file_order import broken_rows, first_of_each

TOP = (1, 5, 10)
FIGURES = tuple(f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in TOP)

# The 1K figure of COCO: the mean over this many consecutive folds of this many images.
FOLDS = 5
FOLD_IMAGES = 1000

# Rows of similarities held at once. A constant, so that the last bits of a figure do not depend on the
# machine.
BLOCK = 256


class Embedded(NamedTuple):
    """A split's embeddings in file order: images (m, d), texts (n, d), the row of each text's image (n,)."""

    images: Tensor
    texts: Tensor
    text_image: Tensor


class RetrievalRecall(Metric):
    """Recall@1/5/10 in both directions and their mean.

    Image to text is a hit if any caption of the image is among the first K, text to image if its image is.
    The rank is 1 + the number of wrong candidates that score at least as high as the best right one, so ties
    count against us; with fewer than K candidates every rank is within K. `one_k` adds, under `1k/`, the mean
    over five consecutive thousands of images in file order, each with its own captions; it is left out where
    there are fewer than 5,000 images.

    The result does not depend on the order of updates, and items that come twice (as padding between
    processes) count once. In a distributed run every process has to update with images and with texts, if
    only with (0, d) tensors. With `keep`, `compute` leaves the embeddings of all processes in `embedded`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    image_embeddings: list[Tensor]
    image_index: list[Tensor]
    text_embeddings: list[Tensor]
    text_index: list[Tensor]
    text_image_index: list[Tensor]

    def __init__(self, *, one_k: bool = False, keep: bool = False) -> None:
        super().__init__()
        self.one_k = one_k
        self.keep = keep
        self.embedded: Embedded | None = None
        for state in ("image_embeddings", "image_index", "text_embeddings", "text_index", "text_image_index"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update_images(self, embeddings: Tensor, index: Tensor) -> None:
        """Take images: embeddings (b, d) and their numbers in file order (b,)."""
        self.update(embeddings, index, None)

    def update_texts(self, embeddings: Tensor, text_index: Tensor, image_index: Tensor) -> None:
        """Take texts: embeddings (b, d), their numbers in file order (b,) and those of their images (b,)."""
        self.update(embeddings, text_index, image_index)

    def update(self, embeddings: Tensor, index: Tensor, image_index: Tensor | None) -> None:
        """Take texts, or images where `image_index` is None."""
        if image_index is None:
            self.image_embeddings.append(embeddings.detach().float())
            self.image_index.append(index)
        else:
            self.text_embeddings.append(embeddings.detach().float())
            self.text_index.append(index)
            self.text_image_index.append(image_index)

    def compute(self) -> dict[str, Tensor]:
        """The figures in percent, as float64.

        Raises NotFinite if an embedding is not finite, DataError if there is nothing to rank, an image
        has no caption, or a caption's image is missing.
        """
        embedded = self._collect()
        if self.keep:
            self.embedded = embedded
        figures = recall_figures(embedded)
        if self.one_k and len(embedded.images) >= FOLDS * FOLD_IMAGES:
            folds = [recall_figures(_fold(embedded, number)) for number in range(FOLDS)]
            figures |= {f"1k/{name}": sum(fold[name] for fold in folds) / FOLDS for name in folds[0]}
        device = embedded.images.device
        return {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in figures.items()}

    def _collect(self) -> Embedded:
        if 0 in (len(self.image_index), len(self.text_index)):
            raise DataError("retrieval: no images or no captions were embedded; is the split empty?")
        images, image_index = _in_file_order("image", self.image_embeddings, self.image_index)
        texts, text_index = _in_file_order("caption", self.text_embeddings, self.text_index)
        text_image_index = first_of_each(dim_zero_cat(self.text_index), dim_zero_cat(self.text_image_index))
        text_image = torch.searchsorted(image_index, text_image_index).clamp(max=len(image_index) - 1)
        astray = text_index[image_index[text_image] != text_image_index]
        if len(astray):
            raise DataError(f"retrieval: caption {astray[0].item()} belongs to an image that was not embedded")
        bare = image_index[torch.bincount(text_image, minlength=len(images)) == 0]
        if len(bare):
            raise DataError(f"retrieval: image {bare[0].item()} has no caption among those embedded")
        return Embedded(images, texts, text_image)


def recall_figures(embedded: Embedded) -> dict[str, float]:
    """Recall@1/5/10 in both directions and their mean, in percent."""
    images, texts, text_image = embedded
    ranks = {
        "i2t": best_ranks(images, texts, captions_of_each(text_image, len(images))),
        "t2i": best_ranks(texts, images, text_image.unsqueeze(1)),
    }
    return figures_of_ranks(ranks)


def figures_of_ranks(ranks: Mapping[str, Tensor]) -> dict[str, float]:
    """Recall@1/5/10 of the ranks from 1 (q,) of each direction, and their mean, in percent."""
    figures = {
        f"{direction}_r{k}": 100 * int((rank <= k).sum()) / len(rank) for direction, rank in ranks.items() for k in TOP
    }
    return figures | {"mean_recall": sum(figures.values()) / len(figures)}


@torch.no_grad()
def best_ranks(queries: Tensor, candidates: Tensor, right: Tensor) -> Tensor:
    """The rank of the best right candidate of each query, in blocks of `BLOCK` queries.

    Equal candidates are scored once: a matrix product may give equal columns different last bits, and then a
    tie would be broken by chance.

    Args:
        queries: (q, d), fp32.
        candidates: (c, d), fp32.
        right: Rows of the right candidates of each query (q, k), filled up with -1.

    Returns:
        Ranks from 1 (q,), int64.
    """
    distinct, group = _distinct(candidates)
    # Counts in fp32 are exact up to 2^24 candidates.
    multiplicity = torch.bincount(group, minlength=len(distinct)).float()
    columns = group[right.clamp(min=0)]
    ranks = torch.empty(len(queries), dtype=torch.int64, device=queries.device)
    buffer = queries.new_empty(min(BLOCK, len(queries)), len(distinct))
    with full_precision(queries.device):
        for begin in range(0, len(queries), BLOCK):
            rows = slice(begin, begin + BLOCK)
            scores = buffer[: len(queries[rows])]
            torch.matmul(queries[rows], distinct.T, out=scores)
            own = scores.gather(1, columns[rows]).masked_fill_(right[rows] < 0, -torch.inf)
            best = own.amax(dim=1, keepdim=True)
            at_least = scores.ge_(best) @ multiplicity
            ranks[rows] = 1 + at_least.long() - (own == best).sum(dim=1)
    return ranks


def _fold(embedded: Embedded, number: int) -> Embedded:
    """One of the consecutive thousands of images, with their captions."""
    begin, end = number * FOLD_IMAGES, (number + 1) * FOLD_IMAGES
    inside = (embedded.text_image >= begin) & (embedded.text_image < end)
    return Embedded(embedded.images[begin:end], embedded.texts[inside], embedded.text_image[inside] - begin)


def captions_of_each(text_image: Tensor, images: int) -> Tensor:
    """Rows of the captions of each image (m, most captions of an image), filled up with -1."""
    order = torch.argsort(text_image, stable=True)
    counts = torch.bincount(text_image, minlength=images)
    image = text_image[order]
    place = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[image]
    captions = order.new_full((images, int(counts.max())), -1)
    captions[image, place] = order
    return captions


def _in_file_order(what: str, embeddings: list[Tensor], index: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings and numbers sorted by number, each once. Raises NotFinite if one is not finite."""
    rows, numbers = dim_zero_cat(embeddings), dim_zero_cat(index)
    if not len(rows):
        raise DataError(f"retrieval: no {what}s were embedded; is the split empty?")
    broken = numbers[broken_rows(rows)]
    if len(broken):
        raise NotFinite(
            f"retrieval: {len(broken)} of {len(rows)} {what} embeddings {'is' if len(broken) == 1 else 'are'} "
            f"not finite, the first of {what} {int(broken.min())} (in file order, from 0); the weights diverged or the "
            "file is damaged: lower optim.lr, or give other weights"
        )
    return first_of_each(numbers, rows), first_of_each(numbers, numbers)


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows (u, d), and for each row (c, d) where among them its equal is (c,)."""
    everyone = torch.arange(len(rows), device=rows.device)
    # Rows that differ in a few columns need no closer look; as a rule that is all of them.
    few = _hash(rows[:, :: max(rows.shape[1] // 8, 1)])
    _, which, counts = few.unique(return_inverse=True, return_counts=True)
    suspects = everyone[counts[which] > 1]
    if not len(suspects):
        return rows, everyone
    hashes, which = _hash(rows[suspects]).unique(return_inverse=True)
    lowest = suspects.new_full((len(hashes),), len(rows)).scatter_reduce_(0, which, suspects, "amin")[which]
    # Rows of one hash that are not equal after all stand for themselves.
    pairs = zip(suspects.split(BLOCK), lowest.split(BLOCK), strict=True)
    equal = torch.cat([(rows[some] == rows[others]).all(dim=1) for some, others in pairs])
    first = everyone.scatter(0, suspects, torch.where(equal, lowest, suspects))
    kept, group = first.unique(return_inverse=True)
    return rows[kept], group


def _hash(rows: Tensor) -> Tensor:
    """A hash of the bytes of each row (c, d), int64 (c,); the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator).to(rows.device)
    # Adding 0 makes one zero of the two; int64 wraps around.
    parts = [((part + 0.0).view(torch.int32).long() * weights).sum(dim=1) for part in rows.split(BLOCK)]
    return torch.cat(parts)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in fp32, whatever autocast and the reduced precisions of the hardware are set to."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type=device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
