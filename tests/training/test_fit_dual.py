"""Training runs of CLIP and SigLIP 2, from the configuration to an adapter that `load` takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mwa_lightning
from mwa_lightning.cli.config.composing import apply, compose_groups, read_request
from mwa_lightning.cli.config.consistency import check_model, check_training
from mwa_lightning.training.fit import fit

SIZES = (
    "vision_width=32",
    "vision_ffn_width=64",
    "vision_depth=2",
    "text_width=24",
    "text_ffn_width=48",
    "text_depth=1",
)


@pytest.mark.parametrize(
    ("name", "further"),
    [
        ("clip_tiny", ()),
        ("siglip2_tiny", ()),
        ("siglip2_tiny", ("task.loss=softmax",)),
    ],
    ids=["clip", "siglip", "siglip_softmax"],
)
def test_fit__dual_encoder_to_an_adapter_that_loads(
    name: str, further: tuple[str, ...], data_root: Path, tmp_path: Path
) -> None:
    sizes = [*SIZES, "embedding_width=32"]
    arguments = [
        f"backbone={name}", "backbone.checkpoint=random", *(f"backbone.{size}" for size in sizes),
        "adapter.mid_dim=4", "adapter.enhancer_dim=4", "data=karpathy", f"data.root={data_root}", "data.batch_size=8",
        "data.eval_batch_size=5", "data.num_workers=0", "data.exif=false", "optim.lr=1e-2", "optim.warmup_epochs=0",
        "trainer.max_epochs=1", f"run_dir={tmp_path / 'run'}", *further,
    ]  # fmt: skip
    request = read_request(arguments, config_name="train")
    config = compose_groups("train", request.choices)
    apply(config, request)
    check_model(config)
    check_training(config)
    figures = fit(config)
    assert "test/mean_recall" in figures

    adapter = load_file(tmp_path / "run" / "adapter.safetensors")
    assert not any(key.startswith("backbone.") for key in adapter)
    if name == "siglip2_tiny":
        moved = adapter["heads.logit_bias"].item() != -10.0
        assert moved == (not further)
    assert any(bool(tensor.any()) for key, tensor in adapter.items() if key.endswith("up.weight"))


def test_load__adapter_of_a_run_on_the_tiny_clip(data_root: Path, tmp_path: Path) -> None:
    arguments = [
        "backbone=clip_tiny", "backbone.checkpoint=random", "data=karpathy", f"data.root={data_root}",
        "data.batch_size=8", "data.num_workers=0", "data.exif=false", "optim.lr=1e-2", "optim.warmup_epochs=0",
        "trainer.max_epochs=1", f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    request = read_request(arguments, config_name="train")
    config = compose_groups("train", request.choices)
    apply(config, request)
    fit(config)
    path = tmp_path / "run" / "adapter.safetensors"
    loaded = mwa_lightning.load("clip_tiny", "random", path)
    trained = dict(loaded.model.named_parameters())
    assert all(torch.equal(trained[key], tensor) for key, tensor in load_file(path).items())
    with torch.inference_mode():
        adapted = loaded.model.encode_text(*loaded.tokenizer(["a red picture"]))
        frozen = mwa_lightning.load("clip_tiny", "random").model.encode_text(*loaded.tokenizer(["a red picture"]))
    assert not torch.allclose(adapted, frozen, atol=1e-3)
