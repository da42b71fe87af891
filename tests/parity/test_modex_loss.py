"""The released ModeX variant trains as its authors' code does: ALBEF's loss for retrieval, and all its gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mwa_lightning.adapters.files.adapter_file import load_adapter
from mwa_lightning.adapters.modex import ModeX
from mwa_lightning.backbones.checkpoints import load_backbone
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.data.samples.records import TrainBatch
from mwa_lightning.tasks.heads import retrieval_heads
from mwa_lightning.tasks.model import RetrievalModel, trained_parameters
from mwa_lightning.tasks.retrieval import RetrievalTask
from tests.parity import plain_modex
from tests.parity.plain_modex import DEPTH, FFN, HEADS, IMAGE, LENGTH, MID, PATCH, VOCABULARY, WIDTH, PlainReleased

DISTILLATION = 0.4


def make_task(plain: PlainReleased, file: Path) -> RetrievalTask:
    backbone = FusionEncoder(
        name="albef", vision_width=WIDTH, vision_depth=DEPTH, vision_heads=HEADS, vision_ffn_width=FFN,
        patch_size=PATCH, image_size=IMAGE, text_width=WIDTH, text_heads=HEADS, text_ffn_width=FFN,
        text_layers=2, fusion_layers=2, vocabulary_size=VOCABULARY, text_positions=LENGTH, max_text_length=10,
        embedding_width=plain_modex.PROJECTED,
    )  # fmt: skip
    heads = retrieval_heads(backbone)
    torch.save({"model": plain.state}, file)
    load_backbone(backbone, heads, file)
    model = RetrievalModel(backbone=backbone, adapter=ModeX(variant="released", mid_dim=MID), heads=heads)
    load_adapter(file, model, fingerprint=backbone.fingerprint)
    return RetrievalTask(model=model, queue_size=8, distillation=DISTILLATION, distillation_epochs=0.0)


def test_training__loss_and_gradients_of_the_authors_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts go into the matching pass as their own pass left them, with the text FFN adapters."""
    plain = PlainReleased("albef", pair=False)
    plain.state["temp"] = torch.tensor(0.2)  # of the small one the contrast is near 0, whatever one alters
    task = make_task(plain, tmp_path / "released.pth")
    monkeypatch.setattr(torch, "multinomial", lambda weights, _: weights.argmax(dim=1, keepdim=True))
    generator = torch.Generator().manual_seed(9)
    images = torch.randn(4, 3, IMAGE, IMAGE, generator=generator)
    ids = torch.randint(VOCABULARY - 1, (4, 7), generator=generator)
    mask = torch.arange(7) < torch.tensor([7, 4, 2, 5])[:, None]
    image_ids = torch.tensor([1, 2, 2, 3])

    ours = task.model_step(TrainBatch(images, ids, mask, image_ids, ["a", "b", "c", "d"]))
    ours.backward()
    leaves = plain.leaves()

    def theirs() -> torch.Tensor:
        return plain.training_loss(images.double(), ids, mask, image_ids, distillation=DISTILLATION)

    loss = theirs()
    loss.backward()
    assert ours.item() == pytest.approx(loss.item(), rel=1e-6)
    for name, parameter in trained_parameters(task.model).items():
        if name == "heads.logit_scale":
            wanted, factor = leaves["temp"], -leaves["temp"].item()
        else:  # every tensor was drawn at random: its values say which it is
            (wanted,) = (leaf for leaf in leaves.values() if torch.equal(leaf.float(), parameter))
            factor = 1.0
        assert parameter.grad is not None, name
        assert wanted.grad is not None, name
        difference = (parameter.grad - factor * wanted.grad).norm() / wanted.grad.norm()
        assert difference < 1e-5, (name, difference)

    with torch.no_grad():
        for name, leaf in leaves.items():
            if name.endswith(("attention.self.key.bias", "crossattention.self.key.bias")):
                continue  # adds the same to all scores of a query: no softmax changes
            kept = leaf.clone()
            leaf.mul_(1.2).add_(0.1)
            assert theirs().item() != pytest.approx(ours.item(), rel=2e-6), f"{name} altered changes nothing"
            leaf.copy_(kept)
