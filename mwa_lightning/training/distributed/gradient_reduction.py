"""How the gradients of several processes become one on the CPU.

Gloo adds three or more numbers in an order that depends on their place in DDP's bucket, and DDP fills its buckets anew
after the first step of each start, so a run that was killed and gone on with would end with other bytes.
"""

# No `from __future__ import annotations` here: torch compares the annotations of a hook with its own types.
import functools
from typing import Any

import torch
from torch import distributed
from torch.futures import Future


def mean_in_order_of_ranks(state: Any, bucket: distributed.GradBucket) -> Future[torch.Tensor]:
    """The mean of all processes' gradients in a bucket, added in the order of their ranks wherever they lie in it.

    A communication hook of DDP; `state` is not used. Takes the memory of a bucket per process.
    """
    own = bucket.buffer()
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    work = distributed.all_gather(parts, own, async_op=True)
    assert work is not None
    return work.get_future().then(lambda _: functools.reduce(torch.Tensor.add_, parts).div_(len(parts)))
