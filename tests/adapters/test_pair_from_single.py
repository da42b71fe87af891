"""An adapter trained for retrieval starts one for two images: what fits is used, what is new is named."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from mwa_lightning.adapters.files.adapter_file import save_adapter, trained_state
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.errors import CheckpointError
from mwa_lightning.tasks.model import AdaptedModel
from mwa_lightning.training.assembly.build import adapter_metadata, attach, build_backbone
from scripts.adapter_grid import Cell, composed
from tests.parity.plain_bert import Kind, official_state

# Of blip_tiny and albef_tiny.
SIZES = {"width": 128, "text_width": 128, "depth": 5, "layers": 4, "patch": 20, "grid": 3}
REST = {"vocabulary": 962, "positions": 66, "embedding": 64}


def write_file(path: Path, kind: Kind, *, pair: bool = False, seed: int = 1) -> Path:
    """A backbone's file with official names."""
    options = {"merge_from": 2, "token_types": kind == "albef", "seed": seed}
    torch.save({"model": official_state(kind, pair=pair, **options, **SIZES, **REST)}, path)
    return path


def compose(kind: Kind, method: str, task: str, weights: Path, adapter: Path | None = None) -> DictConfig:
    config = composed(Cell(method, f"{kind}_tiny", task))
    config.backbone.checkpoint = str(weights)
    config.adapter.checkpoint = None if adapter is None else str(adapter)
    return config


def train_retrieval(folder: Path, kind: Kind, method: str, weights: Path) -> tuple[AdaptedModel, Path]:
    """A model of retrieval in which everything that trains has moved, and its adapter file."""
    config = compose(kind, method, "retrieval", weights)
    model = attach(config, *build_backbone(config)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    path = folder / "adapter.safetensors"
    save_adapter(path, trained_state(model), metadata=adapter_metadata(config, model))
    return model, path


def start_reasoning(kind: Kind, method: str, weights: Path, adapter: Path | None) -> AdaptedModel:
    config = compose(kind, method, "reasoning", weights, adapter)
    return attach(config, *build_backbone(config), start=True).eval()


def assert_taken(started: AdaptedModel, trained: AdaptedModel, pairs: dict[str, str]) -> None:
    """`pairs` leads from a part of the one to the part of the other that it has the values of."""
    for ours, theirs in pairs.items():
        for name, value in started.get_submodule(ours).named_parameters():
            assert torch.equal(value, trained.get_submodule(theirs).get_parameter(name)), (ours, name)


@pytest.mark.parametrize(("kind", "method"), [("blip", "modex"), ("blip", "mwa"), ("albef", "modex")])
def test_start__vision_goes_on_and_the_rest_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: Kind, method: str
) -> None:
    weights = write_file(tmp_path / "retrieval.pth", kind)
    trained, adapter = train_retrieval(tmp_path, kind, method, weights)
    started = start_reasoning(kind, method, weights, adapter)
    (line,) = [message for message in caplog.messages if str(adapter) in message]
    assert f"{adapter}: of task=retrieval, " in line
    assert "not needed: " in line
    merging = ", backbone.text_blocks.2.cross_attention.merge, backbone.text_blocks.3.cross_attention.merge"
    new = "heads.hidden, heads.output" + (merging if (kind, method) == ("blip", "modex") else "")
    assert line.endswith(f"new here: {new}")
    assert {record.levelno for record in caplog.records if record.message == line} == {logging.WARNING}
    images = torch.randn(2, 3, 60, 60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(started.backbone.encode_image(images), trained.backbone.encode_image(images))


def test_start__both_cross_attentions_of_blip_begin_as_the_one(tmp_path: Path) -> None:
    weights = write_file(tmp_path / "retrieval.pth", "blip")
    trained, adapter = train_retrieval(tmp_path, "blip", "full", weights)
    started = start_reasoning("blip", "full", weights, adapter)
    pairs = {}
    for layer in range(4):
        block = f"backbone.text_blocks.{layer}"
        pairs |= {f"{block}.{part}": f"{block}.{part}" for part in ("attention", "ffn", "cross_norm")}
        for part in ("query", "key", "value", "output"):
            name = f"{block}.cross_attention.{part}"
            pairs |= {f"{name}.{image}": f"{name}.0" for image in range(2)}
    assert_taken(started, trained, pairs)


def test_start__layers_of_albef_count_anew(tmp_path: Path) -> None:
    """Two text layers, then fusion layers 2 and 3; in the form for two images 2 and 3 begin as 2, 4 and 5 as 3."""
    weights = write_file(tmp_path / "retrieval.pth", "albef")
    trained, adapter = train_retrieval(tmp_path, "albef", "modex", weights)
    started = start_reasoning("albef", "modex", weights, adapter)
    begins_as = {2: 2, 3: 2, 4: 3, 5: 3}
    pairs = {
        f"backbone.text_blocks.{ours}.ffn_norm": f"backbone.text_blocks.{theirs}.ffn_norm"
        for ours, theirs in begins_as.items()
    }
    pairs |= {f"adapter.experts.text_{layer}_ffn": f"adapter.experts.text_{layer}_ffn" for layer in range(2)}
    for ours, theirs in begins_as.items():
        for part in ("experts.fusion_{}_self_attn", "coordinated.fusion_{}_cross_attn", "coordinated.fusion_{}_ffn"):
            pairs["adapter." + part.format(ours)] = "adapter." + part.format(theirs)
    assert_taken(started, trained, pairs)


def test_start__enhancers_of_albef_that_would_be_of_two_layers_are_new(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An enhancer is shared by vision layer n and text layer n, of which only the latter are counted anew."""
    weights = write_file(tmp_path / "retrieval.pth", "albef")
    trained, adapter = train_retrieval(tmp_path, "albef", "mwa", weights)
    started = start_reasoning("albef", "mwa", weights, adapter)
    taken = {0: 0, 1: 1, 2: 2, 5: 3}
    pairs = {f"adapter.enhancers.{ours}": f"adapter.enhancers.{theirs}" for ours, theirs in taken.items()}
    pairs |= {f"adapter.extractors.vision_{layer}": f"adapter.extractors.vision_{layer}" for layer in range(5)}
    pairs |= {
        f"adapter.extractors.fusion_{ours}": f"adapter.extractors.fusion_{2 + (ours - 2) // 2}" for ours in range(2, 6)
    }
    assert_taken(started, trained, pairs)
    assert not any(started.get_parameter(f"adapter.enhancers.{layer}.inner.up.weight").any() for layer in (3, 4))
    two = [f"adapter.enhancers.{layer}.inner.{part}" for layer in (3, 4) for part in ("down", "up")]
    assert caplog.messages[-1].endswith(f"new here: heads.hidden, heads.output, {', '.join(two)}")


@pytest.mark.parametrize("kind", ["blip", "albef"])
def test_start__another_backbone_is_refused(tmp_path: Path, kind: Kind) -> None:
    weights = write_file(tmp_path / "retrieval.pth", kind)
    _, adapter = train_retrieval(tmp_path, kind, "modex", weights)
    for other in (
        write_file(tmp_path / "other.pth", kind, seed=2),
        write_file(tmp_path / "nlvr2.pth", kind, pair=True),
    ):
        with pytest.raises(CheckpointError, match=r"give the backbone\.checkpoint that it was trained on"):
            start_reasoning(kind, "modex", other, adapter)
    config = compose(kind, "modex", "reasoning", weights, adapter)
    with pytest.raises(CheckpointError, match="was trained for task=retrieval"):
        attach(config, *build_backbone(config))


@pytest.mark.parametrize("kind", ["blip", "albef"])
def test_one_image_fingerprint__is_of_a_file_for_one_image_alone(tmp_path: Path, kind: Kind) -> None:
    single, pair = write_file(tmp_path / "one.pth", kind), write_file(tmp_path / "two.pth", kind, pair=True)
    of_one = build_backbone(compose(kind, "modex", "retrieval", single))[0]
    from_one = build_backbone(compose(kind, "modex", "reasoning", single))[0]
    from_two = build_backbone(compose(kind, "modex", "reasoning", pair))[0]
    assert isinstance(of_one, FusionEncoder)
    assert from_one.one_image_fingerprint == of_one.fingerprint != from_one.fingerprint
    assert of_one.one_image_fingerprint is from_two.one_image_fingerprint is None
