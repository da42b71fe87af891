"""A released ModeX file was made in LAVIS: `load` and the commands treat texts as LAVIS does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mwa_lightning
from mwa_lightning.cli.config.composing import Request, apply, compose_groups
from mwa_lightning.data.text.cleaning import TextCleaning
from mwa_lightning.data.text.subwords import make_tokenizer
from mwa_lightning.training.assembly.lavis_texts import settle_texts
from tests.test_hub import fusion_file

WIDTH, MID = 128, 5  # of albef_tiny, and of the bottlenecks
TEXTS = ["A circle, in a T-shape: it's red!", 'The "blue" star (left of/over 2 rings).', " ".join(["star"] * 60)]
ODD = st.lists(st.sampled_from([*"Ab ,.!?\"'()*#:;~-/\n\t", "  ", "<person>", "Étoile", "two"])).map("".join)


def as_in_lavis(text: str, words: int) -> str:
    """BlipCaptionProcessor, by its rules."""
    text = re.sub(r"\s{2,}", " ", re.sub(r'[.!"()*#:;~]', " ", text.lower())).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:words])


def as_in_albef(text: str, words: int) -> str:
    """ALBEF's pre_caption, by its rules."""
    text = re.sub(r"[,.'!?\"()*#:;~]", "", text.lower()).replace("-", " ").replace("/", " ")
    text = re.sub(r"\s{2,}", " ", text.replace("<person>", "person")).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:words])


@given(ODD)
def test_cleaning__equals_both_codes(text: str) -> None:
    for words in (3, 50):
        assert TextCleaning("blip", words)(text).text == as_in_lavis(text, words)
        assert TextCleaning("albef", words)(text).text == as_in_albef(text, words)


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A file as ModeX on ALBEF leaves it, of the sizes of albef_tiny."""
    state: dict[str, torch.Tensor] = dict(fusion_file("albef_tiny", pair=False))
    generator = torch.Generator().manual_seed(3)

    def linear(name: str, width_in: int, width_out: int) -> None:
        state[f"{name}.weight"] = 0.2 * torch.randn(width_out, width_in, generator=generator)
        state[f"{name}.bias"] = 0.2 * torch.randn(width_out, generator=generator)

    def adapter(holder: str, module: str) -> None:
        name = f"{holder}.modex.{module}"
        if module.startswith("cross"):
            linear(f"{name}.down_proj", WIDTH, MID)
            linear(f"{name}.expert_weights", WIDTH, 3)
            for up in ("up_proj", "visual_up_proj", "multi_up_proj"):
                linear(f"{name}.{up}", MID, WIDTH)
        else:
            linear(f"{name}.D_fc1", WIDTH, MID)
            linear(f"{name}.D_fc2", MID, WIDTH)

    for layer in range(5):
        for module in ("visual_msa", "visual_ffn"):
            adapter(f"visual_encoder.blocks.{layer}", module)
    for layer in range(4):
        for module in ("textual_msa", "textual_ffn") if layer < 2 else ("textual_msa", "cross_msa", "cross_ffn"):
            adapter(f"text_encoder.encoder.layer.{layer}", module)
    path = tmp_path / "released.pth"
    torch.save({"model": state}, path)
    return path


def test_load__cleans_as_lavis(released: Path) -> None:
    model, tokenizer, _ = mwa_lightning.load("albef_tiny", released, released)
    plain = make_tokenizer("sentencepiece", tokenizer.path, max_length=32)
    theirs, mask = plain([as_in_lavis(text, 50) for text in TEXTS])
    ids, real = tokenizer(TEXTS)
    assert torch.equal(ids, theirs)
    assert torch.equal(real, mask)
    with torch.inference_mode():
        found = model.encode_text(ids, real)
        others = model.encode_text(*plain([as_in_albef(text, 30) for text in TEXTS]))
    assert (found * others).sum(dim=1)[:2].max() < 0.99  # it matters


def settled(path: Path, backbone: str = "albef_base", task: str = "retrieval", **values: Any) -> tuple[Any, ...]:
    config = compose_groups("train", {"backbone": backbone, "adapter": "modex", "task": task})
    apply(config, Request(choices={}, values={"adapter.checkpoint": str(path), **values}, added={}))
    settle_texts(config)
    return config.backbone.text_cleaning, config.backbone.max_words, config.backbone.max_text_length


def test_settle_texts__on_the_command_line(released: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert settled(released) == ("blip", 50, 35)
    assert "was made in LAVIS" in caplog.text
    assert "backbone.text_cleaning=blip, backbone.max_words=50" in caplog.text
    assert settled(released, task="reasoning") == ("blip", 50, 40)
    assert settled(released, "blip_base", task="reasoning") == ("blip", 50, 64)
    # What somebody has chosen stands.
    own = {"backbone.text_cleaning": "none", "backbone.max_words": None, "backbone.max_text_length": 20}
    assert settled(released, **own) == ("none", None, 20)


def test_settle_texts__other_files_change_nothing(released: Path, tmp_path: Path) -> None:
    state = torch.load(released, weights_only=True)["model"]
    torch.save(
        {"model": {key: tensor for key, tensor in state.items() if ".modex." not in key}}, tmp_path / "plain.pth"
    )
    assert settled(tmp_path / "plain.pth") == ("albef", 30, 35)
