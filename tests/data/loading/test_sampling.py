"""Global batches are a pure function; ranks share them out; a place in an epoch can be left and found again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mwa_lightning.data.loading.sampling import GlobalBatchSampler, SampleKey, ShardSampler, epoch_order
from mwa_lightning.errors import ConfigError

lengths = st.integers(2, 200)
batch_sizes = st.integers(2, 40)
worlds = st.integers(1, 6)
seeds = st.integers(0, 2**40)
epochs = st.integers(0, 50)


def test_epoch_order__is_always_this() -> None:
    assert epoch_order(seed=42, epoch=0, length=8).tolist() == [3, 4, 7, 5, 1, 2, 0, 6]
    assert epoch_order(seed=42, epoch=1, length=8).tolist() == [6, 3, 4, 1, 5, 2, 0, 7]


@given(length=lengths, seed=seeds, epoch=epochs)
def test_epoch_order__permutation(length: int, seed: int, epoch: int) -> None:
    order = epoch_order(seed=seed, epoch=epoch, length=length)
    assert sorted(order.tolist()) == list(range(length))
    if length > 20:
        assert order.tolist() != epoch_order(seed=seed, epoch=epoch + 1, length=length).tolist()
        assert order.tolist() != epoch_order(seed=seed + 1, epoch=epoch, length=length).tolist()


@given(length=lengths, batch_size=batch_sizes, world_size=worlds, seed=seeds, epoch=epochs, drop_last=st.booleans())
def test_global_batch_sampler__ranks_make_up_the_global_batch(
    length: int, batch_size: int, world_size: int, seed: int, epoch: int, drop_last: bool
) -> None:
    assume(batch_size >= world_size)

    def sampler(rank: int, world_size: int) -> GlobalBatchSampler:
        made = GlobalBatchSampler(
            length=length, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, drop_last=drop_last
        )
        made.set_epoch(epoch)
        return made

    alone = list(sampler(0, 1))
    ranks = [list(sampler(rank, world_size)) for rank in range(world_size)]
    assert len(alone) == len(sampler(0, 1))
    assert all(len(batches) == len(alone) for batches in ranks)
    for i, batch in enumerate(alone):
        slices = [batches[i] for batches in ranks]
        assert [key for part in slices for key in part] == batch
        assert max(map(len, slices)) - min(map(len, slices)) <= 1
        assert sampler(0, world_size).shares(i) == tuple(map(len, slices))
    order = epoch_order(seed=seed, epoch=epoch, length=length)
    keys = [key for batch in alone for key in batch]
    assert keys == [SampleKey(epoch, i, int(order[i])) for i in range(len(keys))]
    assert all(len(batch) == batch_size for batch in alone[:-1])
    rest = length % batch_size
    if not drop_last:
        assert len(keys) == length - (rest == 1)  # every sample once, but for a batch of one
    else:
        assert len(keys) == (length if length < batch_size else length - rest)
    assert all(len(batch) >= 2 for batch in alone)


@given(length=lengths, batch_size=batch_sizes, epoch=epochs, data=st.data())
def test_global_batch_sampler__goes_on(length: int, batch_size: int, epoch: int, data: st.DataObject) -> None:
    def sampler() -> GlobalBatchSampler:
        return GlobalBatchSampler(length=length, batch_size=batch_size, seed=7, drop_last=False)

    whole = sampler()
    whole.set_epoch(epoch)
    batches = list(whole)
    done = data.draw(st.integers(0, len(batches) - 1))
    whole.next_batch = done
    resumed = sampler()
    resumed.load_state_dict(whole.state_dict())
    resumed.set_epoch(epoch)  # as the trainer does: no change
    assert list(resumed) == batches[done:]
    assert len(resumed) == len(batches)
    resumed.set_epoch(epoch + 1)
    assert len(list(resumed)) == len(batches)


def test_global_batch_sampler__another_number_of_ranks_goes_on() -> None:
    one = GlobalBatchSampler(length=20, batch_size=4, seed=0)
    one.next_batch = 3
    two = [GlobalBatchSampler(length=20, batch_size=4, seed=0, rank=rank, world_size=2) for rank in range(2)]
    for sampler in two:
        sampler.load_state_dict(one.state_dict())
    assert [first + second for first, second in zip(*two, strict=True)] == list(one)


@pytest.mark.parametrize(("name", "other"), [("length", 21), ("batch_size", 5), ("seed", 1)])
def test_global_batch_sampler__state_of_another_run(name: str, other: int) -> None:
    options: dict[str, Any] = {"length": 20, "batch_size": 4, "seed": 0}
    state = GlobalBatchSampler(**{**options, name: other}).state_dict()
    with pytest.raises(ConfigError, match=str(other)):
        GlobalBatchSampler(**options).load_state_dict(state)


def test_global_batch_sampler__no_negatives() -> None:
    with pytest.raises(ConfigError, match=r"data.batch_size=1 gives global batches of one"):
        GlobalBatchSampler(length=20, batch_size=1, seed=0)
    with pytest.raises(ConfigError, match=r"split of 1 caption gives global batches of one"):
        GlobalBatchSampler(length=1, batch_size=8, seed=0)
    with pytest.raises(ConfigError, match="less than one sample for each of the 3 processes"):
        GlobalBatchSampler(length=20, batch_size=2, seed=0, world_size=3)


@given(length=st.integers(1, 300), batch_size=st.integers(1, 50), world_size=worlds)
def test_shard_sampler__each_sample_once(length: int, batch_size: int, world_size: int) -> None:
    samplers = [
        ShardSampler(length=length, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    batches = [list(sampler) for sampler in samplers]
    assert [i for rank in batches for batch in rank for i in batch] == list(range(length))
    assert len({len(rank) for rank in batches}) == 1
    assert all(len(sampler) == len(rank) for sampler, rank in zip(samplers, batches, strict=True))
    sizes = [len(batch) for rank in batches for batch in rank]
    assert max(sizes) <= batch_size
    if length // world_size >= len(batches[0]):
        assert min(sizes) >= 1
    assert len(batches[0]) == int(np.ceil(np.ceil(length / world_size) / batch_size))
