from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from mwa_lightning.adapters.head_only import HeadOnly
from mwa_lightning.adapters.mwa import MultiWayAdapter
from mwa_lightning.data.samples.records import ImageBatch, TextBatch, TrainBatch
from mwa_lightning.errors import ConfigError
from mwa_lightning.metrics.recall import RetrievalRecall
from mwa_lightning.tasks.losses.functions import contrastive_loss
from mwa_lightning.tasks.model import RetrievalModel
from mwa_lightning.tasks.retrieval import RetrievalTask

MakeModel = Callable[..., RetrievalModel]


def loader(batches: list[Any]) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)


def train_batches(count: int) -> list[TrainBatch]:
    generator = torch.Generator().manual_seed(0)
    return [
        TrainBatch(
            images=torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator),
            ids=torch.randint(4, 40, (6, 5), generator=generator),
            mask=torch.ones(6, 5, dtype=torch.bool),
            image_ids=torch.tensor([0, 1, 2, 3, 4, 0]),
            sample_ids=[f"sample {number}" for number in range(6)],
        )
        for _ in range(count)
    ]


def evaluation_batches(images: int) -> tuple[list[ImageBatch], list[TextBatch]]:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (images, 3, 16, 16), dtype=torch.uint8, generator=generator)
    ids = torch.randint(4, 40, (5 * images, 6), generator=generator)
    first = [ImageBatch(pictures[rows], rows) for rows in torch.arange(images).split(4)]
    second = [
        TextBatch(ids[rows], torch.ones(len(rows), 6, dtype=torch.bool), rows, rows // 5)
        for rows in torch.arange(5 * images).split(7)
    ]
    return first, second


def make_task(make_model: MakeModel, **options: Any) -> RetrievalTask:
    model = make_model(MultiWayAdapter(mid_dim=4, enhancer_dim=6))
    return RetrievalTask(
        model=model, configure=lambda task: torch.optim.SGD(task.model.heads.parameters(), lr=0.1), **options
    )


def make_trainer(**options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


class Watch(Callback):
    """Notes what callbacks see after each step."""

    def __init__(self) -> None:
        self.scales: list[float] = []
        self.modes: list[bool] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        self.scales.append(pl_module.model.heads.logit_scale.item())
        self.modes.append(any(module.training for module in pl_module.model.backbone.modules()))
        assert pl_module.model.adapter.training


def test_model_step__is_the_loss_of_the_embeddings(make_model: MakeModel) -> None:
    task = make_task(make_model, mask_same_image=False).eval()
    batch = train_batches(1)[0]
    expected = contrastive_loss(
        task.model.encode_image(batch.images),
        task.model.encode_text(batch.ids, batch.mask),
        logit_scale=task.model.heads.logit_scale,
        image_ids=batch.image_ids,
        mask_same_image=False,
    )
    assert torch.equal(task.model_step(batch), expected)
    task.mask_same_image = True
    assert task.model_step(batch) < expected


def test_pain_18__frozen_modules_stay_in_eval_after_a_validation(make_model: MakeModel) -> None:
    watch = Watch()
    trainer = make_trainer(max_epochs=2, callbacks=[watch])
    trainer.fit(make_task(make_model), loader(train_batches(2)), [loader(each) for each in evaluation_batches(3)])
    assert watch.modes == [False] * 4


def test_fit__bounds_the_scale(make_model: MakeModel) -> None:
    task = make_task(make_model, logit_scale_max=20.0)
    with torch.no_grad():
        task.model.heads.logit_scale.fill_(4.0)
    watch = Watch()
    trainer = make_trainer(max_epochs=2, callbacks=[watch])
    trainer.fit(task, loader(train_batches(2)), [loader(batches) for batches in evaluation_batches(3)])
    assert max(watch.scales) <= math.log(20.0) + 1e-6
    assert {
        "train/loss",
        "train/logit_scale",
        "val/mean_recall",
        "val/t2i_r10",
    } <= trainer.callback_metrics.keys()


def test_test__figures_are_those_of_the_metric(make_model: MakeModel) -> None:
    task = make_task(make_model, keep_predictions=True)
    images, texts = evaluation_batches(13)
    [logged] = make_trainer().test(task, [loader(images), loader(texts)], verbose=False)[:1]

    metric = RetrievalRecall()
    with torch.no_grad():
        for image_batch in images:
            embeddings = task.model.encode_image(image_batch.images)
            metric.update_images(embeddings, image_batch.image_index)
        for text_batch in texts:
            embeddings = task.model.encode_text(text_batch.ids, text_batch.mask)
            metric.update_texts(embeddings, text_batch.text_index, text_batch.image_index)
    expected = {f"test/{name}": value.item() for name, value in metric.compute().items()}
    assert logged == expected
    assert 0 < expected["test/mean_recall"] < 100

    embedded = task.test_metric.embedded
    assert embedded is not None
    assert embedded.images.shape == (13, 16)
    assert embedded.text_image.tolist() == [number // 5 for number in range(65)]


@pytest.mark.parametrize("largest", [1.0, -3.0, float("nan")])
def test_retrieval_task__bound_out_of_range(make_model: MakeModel, largest: float) -> None:
    with pytest.raises(ConfigError, match=r"task\.logit_scale_max="):
        make_task(make_model, logit_scale_max=largest)


@pytest.mark.parametrize("option", [{"queue_size": 16}, {"rerank": 10}])
def test_task__asks_for_a_head_that_is_not_there(
    option: dict[str, int], make_model: Callable[..., RetrievalModel]
) -> None:
    with pytest.raises(ConfigError, match=f"task.{next(iter(option))}.*test has no head for image-text matching"):
        RetrievalTask(model=make_model(HeadOnly()), **option)
