"""A slow copy of what trains, and a queue of the embeddings that it gave: negatives of more than one batch.

Source: He et al., "Momentum Contrast" (arXiv 1911.05722); Li et al., "Align before Fuse" (arXiv 2107.07651), section
3.4; salesforce/ALBEF, models/model_retrieval.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mwa_lightning.data.samples.records import TrainBatch
from mwa_lightning.errors import CheckpointError
from mwa_lightning.tasks.losses.functions import gather_rows
from mwa_lightning.tasks.model import RetrievalModel, trained_parameters


class MomentumQueue:
    """The slow model and the queue of one run, alike in all processes.

    What is frozen is the same in the slow model and is not copied. Before each batch its parameters become
    decay * slow + (1 - decay) * trained; they begin as these.

    Args:
        size: Most embeddings in the queue.
        decay: How slow the copy is.
    """

    def __init__(self, *, size: int, decay: float) -> None:
        self.size = size
        self.decay = decay
        self._slow: dict[str, Tensor] = {}
        self._images = self._texts = torch.empty(0)
        self._image_ids = torch.empty(0, dtype=torch.int64)
        self._next = 0

    @torch.no_grad()
    def embed(self, model: RetrievalModel, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """Let the slow model follow, then embed a batch with it: images (b, d) and texts (b, d), fp32."""
        trained = {name: parameter.detach() for name, parameter in trained_parameters(model).items()}
        if self._slow:
            self._slow = {name: tensor.to(trained[name].device) for name, tensor in self._slow.items()}
            torch._foreach_lerp_(list(self._slow.values()), [trained[name] for name in self._slow], 1 - self.decay)
        else:
            self._slow = {name: tensor.clone() for name, tensor in trained.items()}
        images, texts = torch.func.functional_call(model, self._slow, (batch.images, batch.ids, batch.mask))
        return images, texts

    def keys(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The queue as far as it is filled: images (q, d), texts (q, d) and image ids (q,), where `like` (b, d) is."""
        if not len(self._images):
            self._images, self._texts = (like.new_empty(0, like.shape[1]) for _ in range(2))
        self._images, self._texts, self._image_ids = (
            part.to(like.device) for part in (self._images, self._texts, self._image_ids)
        )
        return self._images, self._texts, self._image_ids

    @torch.no_grad()
    def extend(self, images: Tensor, texts: Tensor, image_ids: Tensor, *, shares: Sequence[int] | None = None) -> None:
        """Take in the embeddings (b, d) and ids (b,) of a batch, of all processes; the oldest leave a full queue.

        `shares` says how many rows each process has, by rank; None = the processes ask each other.

        What is not finite is taken in as zeros: a step that is skipped for it must not spoil those to come.
        """
        batch = [gather_rows(part, shares)[-self.size :] for part in (images, texts, image_ids)]
        queue = list(self.keys(images))
        fresh = min(self.size - len(queue[0]), len(batch[0]))
        places = [(self._next + i) % self.size for i in range(len(batch[0]))]
        for number, part in enumerate(batch):
            sound = torch.nan_to_num(part, nan=0.0, posinf=0.0, neginf=0.0)
            queue[number] = torch.cat([queue[number], sound[:fresh]])
            queue[number][torch.tensor(places[fresh:], dtype=torch.int64, device=part.device)] = sound[fresh:]
        self._images, self._texts, self._image_ids = queue
        self._next = (self._next + len(places)) % self.size

    def state_dict(self) -> dict[str, Any]:
        return {
            "slow": self._slow,
            "images": self._images,
            "texts": self._texts,
            "image_ids": self._image_ids,
            "next": self._next,
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Take everything up again. Raises CheckpointError if it is of a run without a queue, or with a longer one."""
        if state is None:
            raise CheckpointError("the checkpoint holds no momentum queue; go on with task.queue_size=null")
        if len(state["images"]) > self.size:
            raise CheckpointError(
                f"the checkpoint holds a momentum queue of {len(state['images'])}; go on with its task.queue_size"
            )
        self._slow, self._next = dict(state["slow"]), int(state["next"])
        self._images, self._texts, self._image_ids = state["images"], state["texts"], state["image_ids"]
