"""Adapters of the released MultiWay-Adapter code under our names. Their outputs: tests/parity/test_released.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mwa_lightning.adapters.files.adapter_file import load_adapter
from mwa_lightning.adapters.files.released_mwa import read_released, released_options
from mwa_lightning.adapters.mwa import MultiWayAdapter
from mwa_lightning.backbones.checkpoints import official_state
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.errors import CheckpointError
from mwa_lightning.tasks.heads import RetrievalHeads
from mwa_lightning.tasks.model import RetrievalModel

WIDTH, MID, DEPTH = 16, 6, 2
PREFIX = "beit3.encoder.layers"


def make(**options: object) -> RetrievalModel:
    torch.manual_seed(0)
    backbone = Multiway(
        name="probe", width=WIDTH, depth=DEPTH, heads=4, ffn_width=64, patch_size=8, image_size=16,
        vocabulary_size=30, text_positions=20, max_text_length=16,
    )  # fmt: skip
    fitting = {"enhancer": "ffn", "mid_dim": MID} | options
    adapter = MultiWayAdapter(**fitting)  # type: ignore[arg-type]
    return RetrievalModel(backbone=backbone, adapter=adapter, heads=RetrievalHeads(width=WIDTH)).eval()


def released() -> dict[str, Tensor]:
    """The tensors that the released code adds, each filled with a number of its own."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("adaptmlp_text", "adaptmlp_vision"):
        shapes |= {f"{name}.down_proj.weight": (MID, WIDTH), f"{name}.down_proj.bias": (MID,)}
        shapes |= {f"{name}.up_proj.weight": (WIDTH, MID), f"{name}.up_proj.bias": (WIDTH,)}
    shapes |= {"enhancemlp.fc1.weight": (4 * WIDTH, WIDTH), "enhancemlp.fc1.bias": (4 * WIDTH,)}
    shapes |= {"enhancemlp.fc2.weight": (WIDTH, 4 * WIDTH), "enhancemlp.fc2.bias": (WIDTH,)}
    shapes |= {f"enhancemlp.ffn_layernorm.{kind}": (4 * WIDTH,) for kind in ("weight", "bias")}
    names = [(f"{PREFIX}.{layer}.{name}", shape) for layer in range(DEPTH) for name, shape in shapes.items()]
    return {name: torch.full(shape, float(number)) for number, (name, shape) in enumerate(names)}


def write(folder: Path, state: dict[str, Tensor]) -> Path:
    path = folder / "released.pth"
    torch.save({"model": state}, path)
    return path


def test_read_released__text_and_vision_change_places(tmp_path: Path) -> None:
    state = released()
    read = read_released(write(tmp_path, state))
    assert len(read) == len(state)
    pairs = {
        f"{PREFIX}.1.adaptmlp_text.down_proj.weight": "adapter.extractors.vision_1.bottleneck.down.weight",
        f"{PREFIX}.0.adaptmlp_vision.up_proj.bias": "adapter.extractors.text_0.bottleneck.up.bias",
        f"{PREFIX}.1.enhancemlp.fc1.weight": "adapter.enhancers.1.inner.up.weight",
        f"{PREFIX}.0.enhancemlp.fc2.bias": "adapter.enhancers.0.inner.down.bias",
        f"{PREFIX}.1.enhancemlp.ffn_layernorm.bias": "adapter.enhancers.1.inner.inner_norm.bias",
    }
    for theirs, ours in pairs.items():
        assert torch.equal(read[ours], state[theirs])


def test_load_adapter__fills_every_parameter_of_the_adapter_and_leaves_the_heads(tmp_path: Path) -> None:
    model = make()
    heads = {name: parameter.detach().clone() for name, parameter in model.heads.named_parameters()}
    path = write(tmp_path, released())
    load_adapter(path, model, fingerprint=model.backbone.fingerprint)
    read = read_released(path)
    for name, parameter in model.adapter.named_parameters():
        assert torch.equal(parameter, read.pop(f"adapter.{name}"))
    assert read == {}
    assert all(torch.equal(parameter, heads[name]) for name, parameter in model.heads.named_parameters())


def test_load_adapter__full_checkpoint_gives_heads_too_and_leaves_the_backbone(tmp_path: Path) -> None:
    model, other = make(), make()
    with torch.no_grad():
        for parameter in (*other.backbone.parameters(), *other.heads.parameters()):
            parameter.add_(1.0)
    backbone = {name: parameter.detach().clone() for name, parameter in model.backbone.named_parameters()}
    path = write(tmp_path, official_state(other.backbone, other.heads) | released())
    load_adapter(path, model, fingerprint=model.backbone.fingerprint)
    assert torch.equal(model.heads.vision.weight, other.heads.vision.weight)
    assert torch.equal(model.heads.logit_scale, other.heads.logit_scale)
    assert all(torch.equal(parameter, backbone[name]) for name, parameter in model.backbone.named_parameters())


@pytest.mark.parametrize("options", [{"enhancer": "bottleneck"}, {"mid_dim": 7}, {"first_layer": 1}])
def test_load_adapter__another_composition_is_refused(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="does not fit this adapter"):
        load_adapter(write(tmp_path, released()), make(**options), fingerprint="random")


@pytest.mark.parametrize(
    ("left_out", "expected"),
    [
        ("nothing", {"extractor_vision": True, "extractor_text": True, "enhancer": "ffn", "mid_dim": MID}),
        (
            "enhancemlp",
            {"extractor_vision": True, "extractor_text": True, "enhancer": "none", "mid_dim": MID},
        ),
        (
            "adaptmlp_text",
            {"extractor_vision": False, "extractor_text": True, "enhancer": "ffn", "mid_dim": MID},
        ),
        ("adaptmlp", {"extractor_vision": False, "extractor_text": False, "enhancer": "ffn"}),
    ],
)
def test_released_options__compose_the_adapter_that_the_file_fits(
    tmp_path: Path, left_out: str, expected: dict[str, object]
) -> None:
    path = write(tmp_path, {key: tensor for key, tensor in released().items() if left_out not in key})
    options = released_options(read_released(path))
    assert options == expected
    load_adapter(path, make(**options), fingerprint="random")


@pytest.mark.parametrize(
    "key",
    [
        f"{PREFIX}.0.adaptmlp_text.scale",
        f"{PREFIX}.0.adaptmlp_text.adapter_layer_norm_before.weight",
    ],
)
def test_read_released__parts_that_ours_lacks_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(CheckpointError, match="has parts that this MultiWay-Adapter lacks"):
        read_released(write(tmp_path, released() | {key: torch.ones(1)}))


def test_read_released__file_of_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"heads of retrieval \(head\.norm1\.weight\); give a file trained for ret"
    ):
        read_released(write(tmp_path, released() | {"head.norm1.weight": torch.ones(1)}))


def test_read_released__file_without_an_adapter_is_refused(tmp_path: Path) -> None:
    model = make()
    path = write(tmp_path, official_state(model.backbone, model.heads))
    with pytest.raises(
        CheckpointError,
        match=r"a whole model \(BEiT-3\) without an adapter: give it as backbone\.checkpoint",
    ):
        read_released(path)


def test_read_released__is_no_module_state(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(CheckpointError, match="not an adapter file: it holds weight, bias"):
        read_released(tmp_path / "linear.pth")
