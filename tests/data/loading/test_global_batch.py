"""The global batch stays, whatever the number of processes."""

from __future__ import annotations

import logging

import pytest

from mwa_lightning.data.loading.global_batch import kept_global_batch
from mwa_lightning.errors import ConfigError

SAVED = {"sampler": {"batch_size": 16}, "batch_size": 8, "processes": 2}


@pytest.mark.parametrize(
    ("batch_size", "processes", "said"),
    [
        (8, 2, ""),
        (8, 1, "1 process now, 2 before: the global batch stays 16, so that each has 16 of its samples"),
        (16, 1, "1 process now, 2 before: the global batch stays 16, so that each has 16 of its samples"),
        (8, 3, "3 processes now, 2 before: the global batch stays 16, so that each has 5 or 6 of its samples"),
        (4, 4, "4 processes now, 2 before: the global batch stays 16, so that each has 4 of its samples"),
    ],
)
def test_kept__and_what_changes_is_said(
    batch_size: int, processes: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="mwa_lightning"):
        assert kept_global_batch(SAVED, batch_size=batch_size, processes=processes) == 16
    assert [record.message.split(";")[0] for record in caplog.records] == [said] * bool(said)


@pytest.mark.parametrize(
    ("batch_size", "processes", "message"),
    [
        (6, 2, "a global batch of 12, the run has one of 16: set data.batch_size=8, or leave data.batch_size=8 as"),
        (6, 3, "a global batch of 18, the run has one of 16: leave data.batch_size=8 as it was"),
    ],
)
def test_kept__another_batch_is_refused(batch_size: int, processes: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kept_global_batch(SAVED, batch_size=batch_size, processes=processes)
    assert f"data.batch_size=6 on {processes} processes makes {message}" in str(caught.value)


def test_kept__more_processes_than_samples() -> None:
    with pytest.raises(
        ConfigError, match=r"^the run has a global batch of 16: go on with at most 16 processes, not 17$"
    ):
        kept_global_batch(SAVED, batch_size=8, processes=17)
