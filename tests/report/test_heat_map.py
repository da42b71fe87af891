"""The heat map: a picture whose bytes depend on the numbers alone."""

from __future__ import annotations

import io

from PIL import Image

from mwa_lightning.report.heat_map import heat_map

PANELS = {
    "after cross_attn": {"layer 0": [0.2, 0.3, 0.5], "layer 1": [0.6, 0.1, 0.3]},
    "after ffn": {"layer 0": [0, 1, 0]},
}


def test_heat_map__is_a_png_that_numbers_determine() -> None:
    first = heat_map(PANELS, columns=("text", "vision", "cross"))
    picture = Image.open(io.BytesIO(first))
    assert picture.format == "PNG"
    assert min(picture.size) > 100
    assert heat_map(PANELS, columns=("text", "vision", "cross")) == first
    other = PANELS | {"after ffn": {"layer 0": [1, 0, 0]}}
    assert heat_map(other, columns=("text", "vision", "cross")) != first
