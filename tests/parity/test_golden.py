"""BLIP and ALBEF, for one image and for two, against LAVIS itself: its weights and its outputs, kept in golden/.

`scripts/golden/fusion_encoders.py` made them with salesforce-lavis 1.0.2, at tiny size, every tensor drawn at random.
The plain code that stands in for LAVIS in the other tests is held against them too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.parity.plain_bert import Kind
from tests.parity.test_fusion_forms import FORMS, IDS, TOLERANCE, Error, Form

GOLDEN = Path(__file__).parent / "golden"
SIZES = {"width": 16, "text_width": 12, "depth": 2, "patch": 4, "grid": 2}
# Text layers of the form for one image; ALBEF's upper half sees the image.
LAYERS = {("blip", False): 2, ("blip", True): 12, ("albef", False): 4, ("albef", True): 4}


class GoldenForm(Form):
    """A form with LAVIS's weights, inputs and outputs."""

    def __init__(self, kind: Kind, *, pair: bool) -> None:
        super().__init__(kind, pair=pair, seed=0, sizes=SIZES | {"layers": LAYERS[kind, pair]}, types=False)
        self.drawn = self.state
        content = load_file(GOLDEN / f"{kind}{'_pair' if pair else ''}.safetensors")
        self.state, self.given, self.expected = (
            {key.removeprefix(part): tensor for key, tensor in content.items() if key.startswith(part)}
            for part in ("state.", "input.", "output.")
        )

    def inputs(self) -> tuple[list[Tensor], Tensor, Tensor]:
        return list(self.given["images"]), self.given["ids"], self.given["mask"]


@pytest.mark.parametrize(("kind", "pair"), FORMS, ids=IDS)
def test_outputs__equal_those_of_lavis(tmp_path: Path, relative_error: Error, kind: Kind, pair: bool) -> None:
    form = GoldenForm(kind, pair=pair)
    backbone, heads, report = form.ours(tmp_path / "model.pth")
    assert report.new == (("text_embedding.token_types",) if kind == "albef" else ())
    for found in (form.run_ours(backbone, heads), form.run_plain()):
        assert found.keys() == form.expected.keys()
        for name, expected in form.expected.items():
            assert relative_error(found[name], expected) < TOLERANCE, name


@pytest.mark.parametrize(("kind", "pair"), FORMS, ids=IDS)
def test_plain_names__are_those_of_lavis(kind: Kind, pair: bool) -> None:
    form = GoldenForm(kind, pair=pair)
    beside = {key for key in form.drawn if "_m." in key or "queue" in key}
    drawn = {key: tensor.shape for key, tensor in form.drawn.items() if key not in beside}
    assert drawn == {key: tensor.shape for key, tensor in form.state.items()}


def test_golden__is_small_and_random_all_through() -> None:
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 1_000_000
    for kind, pair in FORMS:
        state = GoldenForm(kind, pair=pair).state
        weights = {key: tensor for key, tensor in state.items() if tensor.is_floating_point() and tensor.ndim}
        assert all(len(tensor.unique()) > 1 for tensor in weights.values())
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())
