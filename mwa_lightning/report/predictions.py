"""`predictions.safetensors`: the embeddings, or the logits, of a split in file order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mwa_lightning.system.tensor_files import write_tensors

if TYPE_CHECKING:
    from mwa_lightning.metrics.reranking import Ranking

_FORMAT = {"format": "mwa_lightning predictions 1"}


def write_predictions(
    path: Path,
    *,
    images: Tensor,
    texts: Tensor,
    text_image: Tensor,
    image_ids: Sequence[int] | Sequence[str],
    ranking: Ranking | None = None,
) -> None:
    """Write `image_embeddings`, `text_embeddings`, `image_ids`, `text_image_ids`; the file appears whole.

    With a ranking also `image_candidates` (rows of texts) and `image_scores`, `text_candidates` (rows of images) and
    `text_scores`.

    Args:
        path: The file.
        images: Embeddings (m, d) of unit length, in file order.
        texts: Embeddings (n, d) of unit length, in file order.
        text_image: The row in `images` of each text's image (n,).
        image_ids: The images' ids in file order (m); ids that are strings are numbered from 0 in that order,
            and their names go into the metadata, under `image_names`, as a JSON list.
        ranking: The candidates that were scored once more.
    """
    assert len(image_ids) == len(images)
    assert len(text_image) == len(texts)
    metadata = dict(_FORMAT)
    if any(isinstance(image_id, str) for image_id in image_ids):
        metadata["image_names"] = json.dumps([str(image_id) for image_id in image_ids], ensure_ascii=False)
        ids = torch.arange(len(image_ids))
    else:
        ids = torch.tensor([int(image_id) for image_id in image_ids], dtype=torch.int64)
    tensors = {
        "image_embeddings": images.float(),
        "text_embeddings": texts.float(),
        "image_ids": ids,
        "text_image_ids": ids[text_image.cpu()],
    }
    if ranking is not None:
        for name, candidates in (("image", ranking.image_to_text), ("text", ranking.text_to_image)):
            tensors |= {f"{name}_candidates": candidates.rows, f"{name}_scores": candidates.scores}
    write_tensors(path, tensors, metadata=metadata)


def write_statement_predictions(
    path: Path, *, logits: Tensor, labels: Tensor, identifiers: Sequence[str], classes: Sequence[str]
) -> None:
    """Write `logits` and `labels`; the file appears whole.

    The metadata has, as JSON lists, the names of the samples under `identifiers` and those of the classes under
    `classes`.

    Args:
        path: The file.
        logits: Of each sample for each class (n, c), in file order; written as float32.
        labels: The place of the right class among the classes (n,), in file order; written as int64.
        identifiers: The samples' names in file order (n).
        classes: What the labels say (c), in the order of the logits.
    """
    assert len(identifiers) == len(logits) == len(labels)
    assert len(classes) == logits.shape[1]
    metadata = _FORMAT | {
        "identifiers": json.dumps(list(identifiers), ensure_ascii=False),
        "classes": json.dumps(list(classes), ensure_ascii=False),
    }
    write_tensors(path, {"logits": logits.float(), "labels": labels.long()}, metadata=metadata)
