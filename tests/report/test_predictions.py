from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from mwa_lightning.report.predictions import write_predictions, write_statement_predictions

IMAGES, TEXTS = torch.eye(3), torch.eye(3)[[2, 0, 0, 1]]
TEXT_IMAGE = torch.tensor([2, 0, 0, 1])


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_write_predictions__tensors(tmp_path: Path) -> None:
    path = tmp_path / "predictions.safetensors"
    write_predictions(path, images=IMAGES, texts=TEXTS, text_image=TEXT_IMAGE, image_ids=[391895, 60623, 7])
    tensors, metadata = read(path)
    assert tensors.keys() == {"image_embeddings", "text_embeddings", "image_ids", "text_image_ids"}
    assert torch.equal(tensors["image_embeddings"], IMAGES)
    assert torch.equal(tensors["text_embeddings"], TEXTS)
    assert tensors["image_embeddings"].dtype == tensors["text_embeddings"].dtype == torch.float32
    assert tensors["image_ids"].tolist() == [391895, 60623, 7]
    assert tensors["text_image_ids"].tolist() == [7, 391895, 391895, 60623]
    assert tensors["image_ids"].dtype == tensors["text_image_ids"].dtype == torch.int64
    assert "image_names" not in metadata
    assert list(tmp_path.iterdir()) == [path]


def test_write_predictions__string_ids_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "predictions.safetensors"
    write_predictions(path, images=IMAGES, texts=TEXTS, text_image=TEXT_IMAGE, image_ids=["b.jpg", "ä.jpg", "a.jpg"])
    tensors, metadata = read(path)
    assert tensors["image_ids"].tolist() == [0, 1, 2]
    assert tensors["text_image_ids"].tolist() == [2, 0, 0, 1]
    assert json.loads(metadata["image_names"]) == ["b.jpg", "ä.jpg", "a.jpg"]


def test_write_statement_predictions__tensors_and_names(tmp_path: Path) -> None:
    path = tmp_path / "predictions.safetensors"
    logits = torch.tensor([[0.5, -1.0], [2.0, 3.0]], dtype=torch.float64)
    labels = torch.tensor([1, 0], dtype=torch.int32)
    write_statement_predictions(
        path, logits=logits, labels=labels, identifiers=["dev-1-0-0", "ä"], classes=["False", "True"]
    )
    tensors, metadata = read(path)
    assert tensors.keys() == {"logits", "labels"}
    assert torch.equal(tensors["logits"], logits.float())
    assert tensors["logits"].dtype == torch.float32
    assert tensors["labels"].tolist() == [1, 0]
    assert tensors["labels"].dtype == torch.int64
    assert json.loads(metadata["identifiers"]) == ["dev-1-0-0", "ä"]
    assert json.loads(metadata["classes"]) == ["False", "True"]
    assert list(tmp_path.iterdir()) == [path]
