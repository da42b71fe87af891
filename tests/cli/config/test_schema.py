from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from mwa_lightning.cli.config.schema import check_values
from mwa_lightning.errors import ConfigError


def checked(key: str, value: Any) -> Any:
    config = OmegaConf.create({})
    OmegaConf.update(config, key, value)
    check_values(config)
    return OmegaConf.select(config, key)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 0),
        ("optim.lr", 1),
        ("optim.layer_decay", 1.0),
        ("optim.betas", [0.9, 0.98]),
        ("trainer.max_steps", -1),
        ("trainer.max_steps", 1),
        ("trainer.devices", "auto"),
        ("trainer.devices", 2),
        ("trainer.gradient_clip_val", None),
        ("adapter.dropout", 0.0),
        ("optim.warmup_epochs", 0.5),
        ("backbone.checkpoint", "random"),
        ("backbone.checkpoint", "asset://x.safetensors"),
        ("backbone.checkpoint", None),
    ],
)
def test_check_values__kept(key: str, value: Any) -> None:
    assert checked(key, value) == value


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("seed", -1, "whole number from 0 up"),
        ("seed", 1.5, "whole number from 0 up"),
        ("seed", True, "whole number from 0 up"),
        ("seed", None, "seed=null: want a whole number"),
        ("optim.lr", 0, "a number above 0"),
        ("optim.lr", "fast", "optim.lr=fast: .*a number above 0"),
        ("optim.lr", float("nan"), "a number above 0"),
        ("optim.lr", float("inf"), "a number above 0"),
        ("optim.layer_decay", 0, "above 0 to 1"),
        ("optim.layer_decay", 1.1, "above 0 to 1"),
        ("optim.betas", [0.9], r"a list of 2 numbers, such as \[0\.9,0\.999\]$"),
        ("optim.betas", [0.9, 1.0], "from 0 to below 1"),
        ("adapter.dropout", 1.0, "from 0 to below 1"),
        ("adapter.enhancer", "mlp", "want one of bottleneck, ffn, none"),
        ("data.batch_size", 0, "from 1 up"),
        ("data.num_workers", -1, "from 0 up"),
        ("data.exif", "yes", "true or false"),
        ("split", "dev", "want one of train, val, test"),
        ("trainer.max_steps", 0, "from 1 up, or -1"),
        ("trainer.max_steps", -2, "from 1 up, or -1"),
        ("trainer.devices", 0, "want auto or a whole number from 1 up$"),
        ("trainer.precision", 8, "want one of 32, bf16-mixed, 16-mixed, bf16-true, 64-true$"),
        ("trainer.precision", "16-true", "are 0 in float16; take 16-mixed or bf16-true$"),
        ("trainer.precision", "transformer-engine", "replaces the linear layers that adapters"),
        ("training.ema_decay", 1.0, "null or a number above 0 to below 1"),
        ("logger.project", "a/b", "a word of at most 128 characters, without /"),
        ("logger.project", "a" * 129, "a word of at most 128 characters"),
        ("backbone.image_mean", 0.5, "a list of 3 numbers"),
        ("data.background", [1, 2], r"want null or a list of 3 numbers, such as \[255,255,255\]$"),
        ("data.background", [0.5, 2, 3], "want null or a whole number from 0 to 255 for each$"),
        (
            "data.background",
            "blue",
            r"want null or white, black, gray, #rrggbb or \[red,green,blue\] of 0 to 255 each$",
        ),
        ("data.crop_scale", 0.5, r"want a list of 2 numbers, such as \[0\.5,1\.0\]$"),
        (
            "backbone.tokenizer",
            "openai/clip-vit-base-patch32",
            "vit-base-patch32: there is no such file; .* write hf://openai/",
        ),
    ],
)
def test_check_values__refused(key: str, value: Any, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted) as caught:
        checked(key, value)
    assert str(caught.value).startswith(f"{key}=")


@pytest.mark.parametrize(
    ("names", "saved"),
    [
        ((32, "32", "32-true"), "32"),
        ((16, "16", "16-mixed"), "16-mixed"),
        (("bf16", "bf16-mixed"), "bf16-mixed"),
        (("bf16-true",), "bf16-true"),
        ((64, "64", "64-true"), "64-true"),
    ],
)
def test_check_values__precision_has_one_name(names: tuple[Any, ...], saved: str) -> None:
    assert {checked("trainer.precision", name) for name in names} == {saved}


def test_check_values__paths_become_absolute(elsewhere: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert checked("data.root", "pictures") == str(elsewhere / "pictures")
    assert checked("backbone.checkpoint", "~/beit3.pth") == "/home/someone/beit3.pth"
