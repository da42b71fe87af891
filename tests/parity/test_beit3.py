"""BEiT-3 against torchscale 0.2.0, read from an official file: images, texts and both, to 1e-5 in fp32.

Every tensor is drawn at random, texts are padded, and errors are relative to the spread of the output. That each
tensor counts is shown by altering one after the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mwa_lightning.backbones.checkpoints import load_backbone
from mwa_lightning.backbones.checkpoints.families.beit3 import beit3_key_map
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.tasks.heads import RetrievalHeads

pytestmark = pytest.mark.parity

TOLERANCE = 1e-5
SMALL = {"width": 64, "depth": 2, "heads": 4, "patch_size": 8, "image_size": 32, "vocabulary_size": 90}
TINY = {"width": 128, "depth": 4, "heads": 4, "patch_size": 8, "image_size": 48, "vocabulary_size": 1000}
BASE = {"width": 768, "depth": 12, "heads": 12, "patch_size": 16, "image_size": 224, "vocabulary_size": 1000}

Error = Callable[[Tensor, Tensor], float]
Inputs = tuple[Tensor, Tensor, Tensor]


def make_ours(**sizes: Any) -> Multiway:
    return Multiway(name="parity", ffn_width=4 * sizes["width"], **sizes).eval()


def make_inputs(sizes: dict[str, int], *, samples: int = 3) -> Inputs:
    """Normalised images, ids, and the mask of texts of several lengths."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(samples, 3, sizes["image_size"], sizes["image_size"], generator=generator)
    ids = torch.randint(sizes["vocabulary_size"], (samples, 12), generator=generator)
    return images, ids, torch.arange(12) < torch.tensor([12, 7, 1])[:samples, None]


def run_theirs(reference: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    images, ids, mask = inputs
    with torch.no_grad():
        return {
            "image": reference(visual_tokens=images)["encoder_out"],
            "text": reference(textual_tokens=ids, text_padding_position=~mask)["encoder_out"],
            "fused": reference(visual_tokens=images, textual_tokens=ids, text_padding_position=~mask)["encoder_out"],
        }


def run_ours(backbone: Multiway, inputs: Inputs) -> dict[str, Tensor]:
    images, ids, mask = inputs
    with torch.no_grad():
        return {
            "image": backbone.encode_image(images),
            "text": backbone.encode_text(ids, mask),
            "fused": torch.cat(backbone.fuse(images, ids, mask), dim=1),
        }


def write_official(path: Path, reference: nn.Module, **heads: Tensor) -> Path:
    state = {f"beit3.{key}": tensor for key, tensor in reference.state_dict().items()} | heads
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-3)}, path)
    return path


@pytest.mark.parametrize(
    ("sizes", "seed"),
    [
        pytest.param(SMALL, 0, id="small"),
        pytest.param(TINY, 1, id="tiny"),
        pytest.param(BASE | {"depth": 2}, 2, id="base_width"),
        pytest.param(BASE, 3, id="base", marks=pytest.mark.slow),
    ],
)
def test_outputs__equal_torchscale(
    tmp_path: Path,
    make_reference: Callable[..., nn.Module],
    randomize: Callable[..., None],
    relative_error: Error,
    sizes: dict[str, int],
    seed: int,
) -> None:
    reference = make_reference(**sizes)
    randomize(reference, width=sizes["width"], seed=seed)
    ours = make_ours(**sizes)
    report = load_backbone(ours, None, write_official(tmp_path / "official.pth", reference))
    assert (report.dropped, report.new) == ((), ())
    inputs = make_inputs(sizes)
    found = run_ours(ours, inputs)
    for kind, expected in run_theirs(reference, inputs).items():
        assert relative_error(found[kind], expected) < TOLERANCE, kind


def test_outputs__equal_torchscale_at_another_resolution(
    tmp_path: Path, make_reference: Callable[..., nn.Module], randomize: Callable[..., None], relative_error: Error
) -> None:
    reference = make_reference(**SMALL)
    randomize(reference, width=64, seed=4)
    path = write_official(tmp_path / "official.pth", reference)
    larger = SMALL | {"image_size": 56}
    theirs = make_reference(**larger)
    state = reference.state_dict()
    table = state["encoder.embed_positions.A.weight"]
    cells = table[3:].reshape(1, 4, 4, 64).permute(0, 3, 1, 2)
    cells = nn.functional.interpolate(cells, size=(7, 7), mode="bicubic", align_corners=False)
    state["encoder.embed_positions.A.weight"] = torch.cat([table[:3], cells.permute(0, 2, 3, 1).flatten(0, 2)])
    theirs.load_state_dict(state)
    ours = make_ours(**larger)
    assert load_backbone(ours, None, path).interpolated == (4, 7)
    inputs = make_inputs(larger)
    found = run_ours(ours, inputs)
    for kind, expected in run_theirs(theirs, inputs).items():
        assert relative_error(found[kind], expected) < TOLERANCE, kind


def test_outputs__heads_are_applied_to_the_first_token(
    tmp_path: Path, make_reference: Callable[..., nn.Module], randomize: Callable[..., None], relative_error: Error
) -> None:
    reference = make_reference(**SMALL)
    randomize(reference, width=64, seed=5)
    generator = torch.Generator().manual_seed(6)
    weights = {f"{kind}_head.weight": torch.randn(64, 64, generator=generator) for kind in ("vision", "language")}
    ours, heads = make_ours(**SMALL), RetrievalHeads(width=64)
    path = write_official(tmp_path / "official.pth", reference, **weights, logit_scale=torch.tensor(3.0))
    load_backbone(ours, heads, path)
    inputs = make_inputs(SMALL)
    theirs, found = run_theirs(reference, inputs), run_ours(ours, inputs)

    def embed(tokens: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.normalize(tokens[:, 0] @ weight.T, dim=-1)

    with torch.no_grad():
        image, text = heads.embed_image(found["image"]), heads.embed_text(found["text"], None)
    assert relative_error(image, embed(theirs["image"], weights["vision_head.weight"])) < TOLERANCE
    assert relative_error(text, embed(theirs["text"], weights["language_head.weight"])) < TOLERANCE
    assert heads.logit_scale.item() == 3.0


def test_outputs__depend_on_every_mapped_tensor(
    tmp_path: Path, make_reference: Callable[..., nn.Module], randomize: Callable[..., None], relative_error: Error
) -> None:
    reference = make_reference(**SMALL)
    randomize(reference, width=64, seed=8)
    ours = make_ours(**SMALL)
    load_backbone(ours, None, write_official(tmp_path / "official.pth", reference))
    inputs = make_inputs(SMALL)
    expected = run_theirs(reference, inputs)
    parameters = dict(ours.named_parameters())
    generator = torch.Generator().manual_seed(9)
    unnoticed = []
    names = [name for name in beit3_key_map(ours.depth).names.values() if not name.startswith("heads.")]
    assert set(names) == parameters.keys()
    for name in names:
        parameter = parameters[name]
        kept = parameter.detach().clone()
        with torch.no_grad():
            # An alteration of a hundredth of what a tensor holds.
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.002)
        found = run_ours(ours, inputs)
        if max(relative_error(found[kind], expected[kind]) for kind in expected) < 5 * TOLERANCE:
            unnoticed.append(name)
        with torch.no_grad():
            parameter.copy_(kept)
    # Only masked image modelling reaches the mask token.
    assert unnoticed == ["vision_embedding.mask_token"]
