"""Whole official files by their names and shapes, base and large: our key maps use each up, and it fills us.

`keys/*.tsv.xz` list every tensor of models that the original code made, with its shape: BEiT-3 of microsoft/unilm, BLIP
and ALBEF of LAVIS. So nothing here is of our own making but the key maps.
"""

from __future__ import annotations

import lzma
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mwa_lightning.backbones.checkpoints import FORMATS
from mwa_lightning.backbones.checkpoints.key_map import apply_key_map
from mwa_lightning.backbones.checkpoints.loading import parameters_to_fill
from mwa_lightning.cli.config.composing import compose_groups
from mwa_lightning.errors import CheckpointError
from mwa_lightning.tasks.heads import retrieval_heads
from mwa_lightning.tasks.reasoning import USUAL_SHAPES
from mwa_lightning.tasks.reasoning_heads import reasoning_heads
from mwa_lightning.training.instantiating import instantiate

LISTS = {path.name.removesuffix(".tsv.xz"): path for path in (Path(__file__).parent / "keys").glob("*.tsv.xz")}
# Neighbours of ALBEF's form for two images share these.
SHARED = re.compile(r"(text_encoder(?:_m)?\.encoder\.layer\.)(\d+)(\.crossattention\.self\.(?:key|value)\..+)")


def read(name: str) -> dict[str, Tensor]:
    """The tensors of a list, each of one number over and over, which takes no memory; equal where they are shared."""
    header, *rows = lzma.decompress(LISTS[name].read_bytes()).decode().splitlines()
    assert header == "name\tshape"
    state = {}
    numbers: dict[str, int] = {}
    for row in rows:
        key, shape = row.split("\t")
        owner = SHARED.sub(lambda found: f"{found[1]}{int(found[2]) // 2}{found[3]}", key) if "nlvr2" in name else key
        number = numbers.setdefault(owner, 1 + len(numbers))
        state[key] = torch.tensor(float(number)).expand([int(size) for size in re.findall(r"\d+", shape)])
    assert len(state) == len(rows)
    return state


def test_lists__are_all_here() -> None:
    assert LISTS.keys() == {
        "albef_base", "albef_base_nlvr2", "blip_base_retrieval", "blip_base_nlvr2", "beit3_base_nlvr2",
        "beit3_base_retrieval", "beit3_large_retrieval",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(LISTS))
def test_key_map__uses_up_a_whole_file_and_fills_the_model(name: str) -> None:
    state = read(name)
    family, size = name.split("_")[:2]
    node = compose_groups("train", {"backbone": f"{family}_{size}"}).backbone
    statements = name.endswith("_nlvr2")
    if statements and "pair" in node:
        node.pair = True
    with torch.device("meta"):
        backbone = instantiate(node)
        heads = reasoning_heads(backbone, USUAL_SHAPES["reasoning"]) if statements else retrieval_heads(backbone)
    form = next(form for form in FORMATS[backbone.family] if form.recognises(state))
    assert ("two images" in form.name) == (statements and family != "beit3")
    assert form.sizes(state) == form.backbone_sizes(backbone)
    parameters = parameters_to_fill(backbone, heads)
    # The loader brings positions to the configured resolution.
    shapes = {key: None if key in form.positions else parameter.shape for key, parameter in parameters.items()}
    mapped = apply_key_map(state, form.key_map(backbone), shapes, origin=name)

    assert mapped.tensors.keys() | set(mapped.new) == parameters.keys()
    assert mapped.new == (["text_embedding.token_types"] if family == "albef" else [])  # LAVIS has none
    beside = {key for key in state if "_m." in key or "queue" in key or key.endswith("position_ids")}
    assert set(mapped.dropped) == beside
    for key in form.positions:
        assert mapped.tensors[key].shape[1:] == parameters[key].shape[1:]
    # A tensor too many or too few is said.
    with pytest.raises(CheckpointError, match=r"not known: unheard_of\.weight"):
        apply_key_map(state | {"unheard_of.weight": torch.zeros(1)}, form.key_map(backbone), shapes, origin=name)
    lost = [key for key in state if key not in beside and key.endswith(("output.dense.weight", "out_proj.B.weight"))][
        -1
    ]
    rest = {key: tensor for key, tensor in state.items() if key != lost}
    with pytest.raises(CheckpointError, match=rf"missing: {re.escape(lost)}"):
        apply_key_map(rest, form.key_map(backbone), shapes, origin=name)
