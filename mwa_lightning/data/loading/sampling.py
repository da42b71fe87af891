"""Which samples make up each batch: a pure function of the seed, the epoch and the global batch size.

Every rank knows the list of global batches of an epoch and takes its own slice of each, so the ranks
together train on exactly the batches that one process would train on, with any number of workers, and a run
can be taken up at any batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler, SequentialSampler

from mwa_lightning.errors import ConfigError, counted

_STREAM = 0  # keeps these random numbers apart from those of the augmentation


class SampleKey(NamedTuple):
    """What a training data set is asked for: the sample, and where in which epoch it comes up."""

    epoch: int
    position: int
    sample: int


def epoch_order(*, seed: int, epoch: int, length: int) -> np.ndarray:
    """A permutation of `length` samples, int64, from raw bits only: no release of NumPy changes it."""
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(_STREAM, epoch)))
    return np.argsort(bits.random_raw(length), kind="stable")


class GlobalBatchSampler(Sampler[list[SampleKey]]):
    """Batches of one rank in training.

    A last batch of fewer than `smallest` samples is left out; so is, with `drop_last`, any last batch that is
    not full, unless it is the only one.

    Args:
        length: Number of samples.
        batch_size: Number of samples in a batch of all ranks together.
        seed: Seed of the run.
        rank: Which slice to take.
        world_size: Number of ranks; the slices of all, in order, are the global batch.
        drop_last: Leave out a last batch that is not full.
        smallest: Fewest samples that can be trained on: 2 where a loss needs negatives, else 1.

    Raises:
        ConfigError: A global batch would have fewer samples than that, or than there are ranks.
    """

    def __init__(
        self,
        *,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
        smallest: int = 2,
    ) -> None:
        assert 0 <= rank < world_size
        assert 1 <= smallest <= 2 and length >= 1  # noqa: PT018
        if batch_size < smallest or length < smallest:
            what = f"data.batch_size={batch_size}"
            if batch_size >= smallest:
                what = f"a training split of {counted(length, 'caption')}"
            raise ConfigError(
                f"{what} gives global batches of one, which have no negatives for the contrastive loss: give at least 2"
            )
        if batch_size < world_size:
            raise ConfigError(
                f"a global batch of {batch_size} is less than one sample for each of the {world_size} "
                "processes: raise data.batch_size, or take fewer processes"
            )
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.next_batch = 0
        full, rest = divmod(length, batch_size)
        self._batches = full + (rest >= smallest and not (drop_last and full))

    @property
    def sampler(self) -> GlobalBatchSampler:
        """Itself: where the trainer looks for `set_epoch`."""
        return self

    def __len__(self) -> int:
        """Number of batches in an epoch, whether or not some are already behind."""
        return self._batches

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, or stay where it is if this is the epoch already."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.next_batch = 0

    def global_batches(self, epoch: int) -> list[np.ndarray]:
        """The samples of each batch of all ranks."""
        order = epoch_order(seed=self.seed, epoch=epoch, length=self.length)
        return [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self))]

    def shares(self, batch: int) -> tuple[int, ...]:
        """How many samples each rank has in a batch of an epoch, which all epochs have alike."""
        length = min(self.batch_size, self.length - batch * self.batch_size)
        slices = (rank_slice(length=length, rank=rank, world_size=self.world_size) for rank in range(self.world_size))
        return tuple(stop - start for start, stop in slices)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """This rank's slices, from the next batch on; an epoch that is through starts again."""
        first = self.next_batch if self.next_batch < len(self) else 0
        epoch = self.epoch
        for i, batch in enumerate(self.global_batches(epoch)[first:], start=first):
            start, stop = rank_slice(length=len(batch), rank=self.rank, world_size=self.world_size)
            offset = i * self.batch_size
            yield [SampleKey(epoch, offset + j, int(batch[j])) for j in range(start, stop)]

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch. It moves when a batch is used, not when a worker fetches it ahead."""
        return {
            "epoch": self.epoch,
            "next_batch": self.next_batch,
            "length": self.length,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved place; the number of ranks may differ.

        Raises:
            ConfigError: It was saved with another data set, global batch size or seed, whose batches were
                others.
        """
        ours = self.state_dict()
        for name in ("length", "batch_size", "seed"):
            if state[name] != ours[name]:
                raise ConfigError(
                    f"the checkpoint was made with {_KNOBS[name]} {state[name]}, this run has {ours[name]}: "
                    "give what it was made with, or start anew with another run_dir"
                )
        self.epoch = int(state["epoch"])
        self.next_batch = int(state["next_batch"])


class ShardSampler(Sampler[list[int]]):
    """Batches of one rank in evaluation: file order, no sample twice, none left out.

    All ranks have the same number of batches, so that none waits for another; only where a rank has fewer
    samples than batches are some of its batches empty.

    Args:
        length: Number of samples.
        batch_size: Largest number of samples in a batch of this rank.
        rank: Which part to take.
        world_size: Number of ranks.
    """

    def __init__(self, *, length: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        assert 0 <= rank < world_size
        self.sampler = SequentialSampler(range(length))  # Lightning 2.5 asks it whether the order is random
        self._start, self._stop = rank_slice(length=length, rank=rank, world_size=world_size)
        largest = -(-length // world_size)
        self._batches = -(-largest // batch_size)

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        for i in range(self._batches):
            start, stop = rank_slice(length=self._stop - self._start, rank=i, world_size=self._batches)
            yield list(range(self._start + start, self._start + stop))


def rank_slice(*, length: int, rank: int, world_size: int) -> tuple[int, int]:
    """Start and stop of a rank's consecutive share of `length` things; shares differ by one at most."""
    return length * rank // world_size, length * (rank + 1) // world_size


_KNOBS = {"length": "a training split of", "batch_size": "a global batch of", "seed": "the seed"}
