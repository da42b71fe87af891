"""The slow model and the queue: the loss against plain code, the average by hand, the order of the queue."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mwa_lightning.errors import CheckpointError
from mwa_lightning.tasks.losses.functions import momentum_contrastive_loss
from mwa_lightning.tasks.losses.momentum import MomentumQueue
from mwa_lightning.tasks.model import trained_parameters
from mwa_lightning.tasks.retrieval import RetrievalTask
from tests.tasks.fusion_models import FAMILIES, make_batch, make_model


def unit(*shape: int, seed: int) -> Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("queued", [0, 5])
def test_loss__equals_plain_code(queued: int) -> None:
    images, texts, slow_images, slow_texts = (unit(3, 4, seed=seed).double() for seed in range(4))
    queue = unit(queued, 4, seed=4).double(), unit(queued, 4, seed=5).double(), torch.tensor([7, 8, 7, 1, 2][:queued])
    ids, scale, alpha = [7, 9, 7], 5.0, 0.3
    total = 0.0
    for own, slow, others, queue_side in (
        (images, slow_images, slow_texts, queue[1]),
        (texts, slow_texts, slow_images, queue[0]),
    ):
        keys = [*others, *queue_side]
        key_ids = ids + queue[2].tolist()
        for row in range(3):
            logits = torch.stack([scale * own[row] @ key for key in keys])
            opinion = torch.stack([scale * slow[row] @ key for key in keys]).softmax(0)
            right = torch.tensor([float(other == ids[row]) for other in key_ids])
            target = alpha * opinion + (1 - alpha) * right / right.sum()
            total -= (target * logits.log_softmax(0)).sum().item() / 3 / 2
    loss = momentum_contrastive_loss(
        images,
        texts,
        slow=(slow_images, slow_texts),
        queue=tuple(part.float() if part.is_floating_point() else part for part in queue),
        logit_scale=torch.tensor(scale).log(),
        image_ids=torch.tensor(ids),
        distillation=alpha,
    )
    assert loss.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_embed__with_the_average_of_what_trains(family: str) -> None:
    model, batch = make_model(FAMILIES[family]).eval(), make_batch(1, 2, 3)
    queue = MomentumQueue(size=8, decay=0.75)
    first = queue.embed(model, batch)
    assert torch.equal(first[0], model.encode_image(batch.images))
    assert torch.equal(first[1], model.encode_text(batch.ids, batch.mask))
    before = {name: value.detach().clone() for name, value in trained_parameters(model).items()}
    with torch.no_grad():
        for number, value in enumerate(trained_parameters(model).values()):
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(number)))
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    moved = {name: value.detach().clone() for name, value in trained_parameters(model).items()}
    images, texts = queue.embed(model, batch)

    # The model itself is as it was, what is frozen to the bit.
    assert all(torch.equal(value, moved[name]) for name, value in trained_parameters(model).items())
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in frozen.items())
    assert not torch.allclose(images, model.encode_image(batch.images), atol=1e-3)
    with torch.no_grad():
        for name, value in trained_parameters(model).items():
            value.copy_(0.75 * before[name] + 0.25 * moved[name])
    assert torch.allclose(images, model.encode_image(batch.images), atol=1e-6)
    assert torch.allclose(texts, model.encode_text(batch.ids, batch.mask), atol=1e-6)
    assert not images.requires_grad


def test_extend__the_oldest_leave() -> None:
    queue = MomentumQueue(size=5, decay=0.9)
    rows = torch.arange(1.0, 9.0).unsqueeze(1)
    for part in (rows[:3], rows[3:6], rows[6:8]):
        queue.extend(part, -part, part[:, 0].long())
    images, texts, ids = queue.keys(rows)
    assert images[:, 0].tolist() == [6.0, 7.0, 8.0, 4.0, 5.0]
    assert torch.equal(texts, -images)
    assert ids.tolist() == [6, 7, 8, 4, 5]
    queue.extend(rows, -rows, rows[:, 0].long())  # a batch larger than the queue
    assert sorted(queue.keys(rows)[2].tolist()) == [4, 5, 6, 7, 8]
    queue.extend(torch.full((2, 1), torch.nan), torch.full((2, 1), torch.inf), torch.tensor([1, 2]))
    assert all(part.isfinite().all() for part in queue.keys(rows))


def test_state__comes_back() -> None:
    model = make_model(0)
    queue, again = (MomentumQueue(size=8, decay=0.75) for _ in range(2))
    for seed in range(3):
        batch = make_batch(1, 2, 3, 4, seed=seed)
        queue.extend(*queue.embed(model, batch), batch.image_ids)
    again.load_state_dict(queue.state_dict())
    batch = make_batch(1, 2, seed=9)
    for ours, theirs in zip(queue.embed(model, batch), again.embed(model, batch), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(queue.keys(torch.empty(0, 8)), again.keys(torch.empty(0, 8)), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(CheckpointError, match=r"no momentum queue; go on with task\.queue_size=null"):
        again.load_state_dict(None)
    with pytest.raises(CheckpointError, match=r"a momentum queue of 8; go on with its task\.queue_size"):
        MomentumQueue(size=4, decay=0.75).load_state_dict(queue.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_model_step__has_the_queue_in_it(family: str) -> None:
    losses = {}
    for size in (None, 16):
        task = RetrievalTask(model=make_model(FAMILIES[family]), queue_size=size, distillation_epochs=0)
        losses[size] = [task.model_step(make_batch(1, 2, 3, 4, seed=seed)) for seed in range(2)]
    assert losses[16][1].item() > losses[None][1].item() + 0.3  # eight keys instead of four
    losses[16][1].backward()
    assert all(value.grad is not None for value in trained_parameters(task.model).values())
