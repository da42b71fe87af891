"""Names of the hub: what is tried, and the one line where there is nothing."""

from __future__ import annotations

import errno
import logging
import re
import time
from pathlib import Path

import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from mwa_lightning.errors import CheckpointError
from mwa_lightning.hub_access import from_hub


def refused(reference: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        from_hub(reference, [("model.safetensors",)], instead="a folder")
    message = str(caught.value)
    assert message.startswith(f"{reference}: ")
    assert message.endswith("give a folder") or "OWNER/NAME" in message
    assert "\n" not in message
    return message


def test_from_hub__not_reachable_is_said_at_once_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    begun = time.monotonic()
    with caplog.at_level(logging.DEBUG, logger="huggingface_hub"):
        assert "the hub cannot be reached from here" in refused("hf://owner/name")
    assert time.monotonic() - begun < 8
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert capfd.readouterr().err == ""


def test_from_hub__offline_by_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids" in refused("hf://owner/name")


def test_from_hub__no_name_of_the_hub() -> None:
    assert "not a name of the hub" in refused("hf://owner/name/model.safetensors")


@pytest.mark.parametrize(
    ("stops", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "cannot be put into the local cache (No space left on"),
        (LocalEntryNotFoundError("no answer"), "the connection to the hub was lost (no answer); try again, or give"),
        (None, "the repository has no model.safetensors and no pytorch_model.bin; give a folder"),
    ],
)
def test_from_hub__what_stops_one_file_is_not_hidden_by_the_lack_of_another(
    stops: Exception | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(name: str, file: str, *, revision: str | None, local_files_only: bool = False) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        if stops is not None and file == "model.safetensors":
            raise stops
        raise EntryNotFoundError.__new__(EntryNotFoundError)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("mwa_lightning.hub_access._check_reachable", lambda reference, instead: None)
    with pytest.raises(CheckpointError, match=re.escape(said)):
        from_hub("hf://owner/name", [("model.safetensors",), ("pytorch_model.bin",)], instead="a folder")
