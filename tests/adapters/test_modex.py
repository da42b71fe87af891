"""ModeX on every kind of backbone: identity at the start, effect on every stream, what trains, sizes, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mwa_lightning
from mwa_lightning.adapters.experts import CoordinatedExperts, recording
from mwa_lightning.adapters.files.adapter_file import load_adapter, read_metadata, save_adapter, trained_state
from mwa_lightning.adapters.modex import ModeX
from mwa_lightning.backbones.base import Backbone
from mwa_lightning.backbones.dual import DualEncoder
from mwa_lightning.backbones.fusion import FusionEncoder
from mwa_lightning.backbones.multiway import Multiway
from mwa_lightning.backbones.sites import Stream
from mwa_lightning.cli.config.composing import apply, compose_groups, read_request
from mwa_lightning.errors import CheckpointError, ConfigError
from mwa_lightning.tasks.heads import retrieval_heads
from mwa_lightning.tasks.model import AdaptedModel, parameter_figures, parameter_table
from mwa_lightning.tasks.reasoning import USUAL_SHAPES
from mwa_lightning.tasks.reasoning_heads import reasoning_heads
from mwa_lightning.training.assembly.build import attach as attach_configured
from mwa_lightning.training.instantiating import instantiate

SEPARATE: tuple[Stream, ...] = ("vision", "text")
FUSED: tuple[Stream, ...] = ("vision", "text", "fusion")
IMAGE, PATCH, VOCABULARY = 16, 8, 40
FUSION_SIZES: dict[str, Any] = {
    "vision_width": 12, "vision_depth": 3, "vision_heads": 2, "vision_ffn_width": 24,
    "patch_size": PATCH, "image_size": IMAGE, "text_width": 8, "text_heads": 2, "text_ffn_width": 16,
    "vocabulary_size": VOCABULARY, "text_positions": 12, "max_text_length": 10,
}  # fmt: skip


def make(family: str, **options: Any) -> Backbone:
    torch.manual_seed(0)
    backbone: Backbone
    if family == "beit3":
        backbone = Multiway(
            name="probe", width=16, depth=3, heads=2, ffn_width=32, patch_size=PATCH, image_size=IMAGE,
            vocabulary_size=VOCABULARY, text_positions=14, max_text_length=10,
        )  # fmt: skip
    elif family == "clip":
        backbone = DualEncoder(
            name="clip", form="clip", vision_width=12, vision_depth=3, vision_heads=2, vision_ffn_width=24,
            text_width=8, text_depth=2, text_heads=2, text_ffn_width=16, embedding_width=6, patch_size=PATCH,
            image_size=IMAGE, vocabulary_size=VOCABULARY, text_positions=12, max_text_length=10,
            activation="quick_gelu", norm_epsilon=1e-5,
        )  # fmt: skip
    elif family == "blip":
        form = {"text_layers": 3, "fusion_layers": 0, "encoder_token": -1, "merge_from": 2}
        backbone = FusionEncoder(name="blip", **(FUSION_SIZES | form | options))
    else:
        form = {"text_layers": 2, "fusion_layers": 2}
        backbone = FusionEncoder(name="albef", **(FUSION_SIZES | form | options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return backbone.eval()


class ClassHead(nn.Module):
    """A head of reasoning: no temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(4, 2)


class ContrastiveHeads(nn.Module):
    """Heads of retrieval: projections, and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = nn.Linear(4, 4)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))


class Model(nn.Module):
    """Backbone, adapter and heads under the names of the tasks' models."""

    def __init__(self, backbone: Backbone, adapter: ModeX, heads: nn.Module, streams: tuple[Stream, ...]) -> None:
        super().__init__()
        adapter.attach(backbone, heads, streams=streams)
        self.backbone, self.adapter, self.heads = backbone, adapter, heads


def attach(
    backbone: Backbone, streams: tuple[Stream, ...] = FUSED, heads: nn.Module | None = None, **options: Any
) -> Model:
    torch.manual_seed(4)
    adapter = ModeX(**({"mid_dim": 4} | options))
    return Model(backbone, adapter, heads or ClassHead(), streams).eval()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(3, 3, IMAGE, IMAGE, generator=generator)
    ids = torch.randint(4, VOCABULARY - 1, (3, 6), generator=generator)
    return images, ids, torch.arange(6) < torch.tensor([6, 4, 2])[:, None]


def fuse(backbone: Backbone) -> list[Tensor]:
    images, ids, mask = inputs()
    if isinstance(backbone, Multiway):
        return list(backbone.fuse(images, ids, mask))
    assert isinstance(backbone, FusionEncoder)
    return [backbone.fuse([backbone.encode_image(images)] * backbone.images, ids, mask)]


def run(backbone: Backbone) -> dict[str, Tensor]:
    """Image, text and fused outputs; of padding, which means nothing, too: the start must be equal there as well."""
    images, ids, mask = inputs()
    fused = {}
    if "fusion" in backbone.streams:
        fused = {f"fused {part}": tokens for part, tokens in enumerate(fuse(backbone))}
    return {"image": backbone.encode_image(images), "text": backbone.encode_text(ids, mask)} | fused


def perturb(module: nn.Module, scale: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


@pytest.mark.parametrize("coordinator", ["softmax", "uniform", "top1"])
@pytest.mark.parametrize("family", ["beit3", "clip", "blip", "albef"])
def test_attach__fresh_adapter_leaves_every_output_equal_and_a_perturbed_one_changes_all(
    family: str, coordinator: str
) -> None:
    backbone = make(family)
    with torch.no_grad():
        frozen = run(backbone)
        model = attach(backbone, coordinator=coordinator)
        fresh = run(backbone)
        perturb(model.adapter)
        changed = run(backbone)
    for way, output in frozen.items():
        assert torch.equal(fresh[way], output), way
        assert not torch.allclose(changed[way], output, atol=1e-2), way


@pytest.mark.parametrize("family", ["beit3", "blip", "albef"])
def test_training__two_steps_change_every_output_and_only_what_trains(family: str) -> None:
    backbone = make(family)
    with torch.no_grad():
        frozen = run(backbone)
    model = attach(backbone)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained = set(trained_state(model))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        sum(output.square().mean() for output in run(backbone).values()).backward()
        optimizer.step()
    with torch.no_grad():
        after = run(backbone)
    for way, output in frozen.items():
        assert (after[way] - output).abs().max() > 1e-3, way
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert {name for name in changed if name.startswith("backbone.")} <= trained
    assert trained - changed <= {name for name in trained if name.startswith("heads.")}


def kinds(adapter: ModeX) -> tuple[set[str], set[str]]:
    return set(adapter.experts), set(adapter.coordinated)


def test_place__coordinated_experts_act_on_the_joint_sequence_of_beit3_besides_the_streams_own() -> None:
    model = attach(make("beit3"))
    branches = ("self_attn", "ffn")
    assert kinds(model.adapter) == (
        {f"{stream}_{layer}_{branch}" for stream in SEPARATE for layer in range(3) for branch in branches},
        {f"fusion_{layer}_{branch}" for layer in range(3) for branch in branches},
    )
    with recording(model.adapter, per_token=True) as records, torch.no_grad():
        run(model.backbone)
    images = 1 + (IMAGE // PATCH) ** 2
    for record in records.values():
        (kept,) = record.passes  # image and text alone do not pass
        assert kept.weights.shape == (3, images + 6, 3)
        assert kept.mask is not None
        assert kept.mask.sum() == 3 * images + 6 + 4 + 2


def test_place__without_fusion_stream_there_are_no_coordinated_experts() -> None:
    on_vision, on_text = {"vision_2_self_attn", "vision_2_ffn"}, {"text_2_self_attn", "text_2_ffn"}
    assert kinds(attach(make("beit3"), SEPARATE, first_layer=2).adapter) == (on_vision | on_text, set())
    # Its text transformer ends at layer 1, and its streams are of different widths.
    assert kinds(attach(make("clip"), first_layer=2).adapter) == (on_vision, set())


def test_released__is_refused_where_the_authors_code_has_no_arrangement() -> None:
    with pytest.raises(ConfigError, match=r"released code has no arrangement for clip, which has no cross-attention"):
        attach(make("clip"), variant="released")


def test_place__fusion_encoders_coordinate_after_cross_attention_and_ffn() -> None:
    experts, coordinated = kinds(attach(make("albef"), first_layer=2).adapter)
    assert experts == {"vision_2_self_attn", "vision_2_ffn", "fusion_2_self_attn", "fusion_3_self_attn"}
    assert coordinated == {f"fusion_{layer}_{branch}" for layer in (2, 3) for branch in ("cross_attn", "ffn")}


@pytest.mark.parametrize(
    ("family", "streams"),
    [
        ("beit3", SEPARATE),
        ("beit3", FUSED),
        ("clip", SEPARATE),
        ("blip", SEPARATE),
        ("blip", ("vision", "fusion")),
        ("albef", FUSED),
    ],
)
def test_gradients__everything_that_trains_gets_one(family: str, streams: tuple[Stream, ...]) -> None:
    backbone = make(family)
    model = attach(backbone, streams)
    perturb(model.adapter)
    images, ids, mask = inputs()
    if "fusion" in streams:
        loss = sum(tokens[:, 0].square().sum() for tokens in fuse(backbone))
    else:
        loss = backbone.encode_image(images)[:, 0].square().sum() + backbone.encode_text(ids, mask)[:, 0].square().sum()
    loss.backward()  # type: ignore[union-attr]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("heads.")}
    assert {name for name, parameter in trained.items() if parameter.grad is None} == set()
    norms = {name for name in trained if name.startswith("backbone.")}
    every = {name for name, _ in model.named_parameters() if "norm" in name and name.startswith("backbone.")}
    unfused = {name for name in every if "cross_norm" in name or ".fusion" in name} if streams == SEPARATE else set()
    assert norms == every - unfused


def test_norms__below_the_first_layer_stay_frozen_and_outside_the_graph() -> None:
    backbone = make("beit3")
    model = attach(backbone, first_layer=2)
    trained = {name for name in trained_state(model) if name.startswith("backbone.")}
    assert all(name.startswith(("backbone.blocks.2.", "backbone.final_norm.")) for name in trained)
    assert any("inner_norm" in name for name in trained)
    graph: list[bool] = []
    for block in backbone.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(lambda module, inputs, output: graph.append(output["vision"].requires_grad))
    backbone.encode_image(inputs()[0])
    assert graph == [False, False, True]


def test_merge_layers__train_in_the_form_for_two_images() -> None:
    model = attach(make("blip", pair=True), ("vision", "fusion"))
    merging = {name for name in trained_state(model) if ".merge." in name}
    assert merging == {f"backbone.text_blocks.2.cross_attention.merge.{kind}" for kind in ("weight", "bias")}


def test_compile__the_adapted_model_is_one_graph() -> None:
    model = attach(make("beit3"))
    perturb(model.adapter)
    images, ids, mask = inputs()
    expected = run(model.backbone)
    compiled = torch.compile(model.backbone.fuse, fullgraph=True, backend="eager")  # type: ignore[union-attr]
    assert torch.equal(compiled(images, ids, mask)[0], expected["fused 0"])
    with recording(model.adapter, per_token=True) as records:
        assert torch.equal(compiled(images, ids, mask)[1], expected["fused 1"])
    assert all(len(record.passes) == 1 and record.totals is not None for record in records.values())


def test_file__round_trip_restores_what_was_trained(tmp_path: Path) -> None:
    first, second = attach(make("albef")), attach(make("albef"))
    for module in (first.adapter, *(m for m in first.backbone.modules() if isinstance(m, nn.LayerNorm))):
        perturb(module)
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, trained_state(first), metadata={"backbone": "albef", "fingerprint": "f"})
    load_adapter(path, second, fingerprint="f")
    with torch.no_grad():
        theirs, ours = run(first.backbone), run(second.backbone)
    assert all(torch.equal(theirs[way], ours[way]) for way in theirs)
    uniform = attach(make("albef"), coordinator="uniform")
    with pytest.raises(CheckpointError, match="does not fit this adapter"):
        load_adapter(path, uniform, fingerprint="f")


def test_load__by_name_and_by_the_metadata_of_a_file(tmp_path: Path) -> None:
    model = mwa_lightning.load("beit3_tiny", adapter="modex").model
    assert isinstance(model.adapter, ModeX)
    perturb(model.adapter)
    path = tmp_path / "adapter.safetensors"
    config = {"_target_": "mwa_lightning.adapters.modex.ModeX", "coordinator": "top1", "temperature": 5.0}
    metadata = {"backbone": "beit3_tiny", "fingerprint": model.backbone.fingerprint, "config": config}
    save_adapter(path, trained_state(model), metadata=metadata)
    assert json.loads(read_metadata(path)["config"]) == config
    again = mwa_lightning.load("beit3_tiny", adapter=path).model
    assert (again.adapter.form, again.adapter.temperature) == ("top1", 5.0)
    assert all(torch.equal(tensor, trained_state(again)[name]) for name, tensor in trained_state(model).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "paper"}, r"adapter.variant=paper: choose one of standard, released"),
        ({"coordinator": "hard"}, r"adapter.coordinator=hard: choose one of softmax, uniform, top1"),
    ],
)
def test_constructor__refuses_what_it_does_not_know(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModeX(**options)


def test_attach__refuses_a_first_layer_above_the_top() -> None:
    with pytest.raises(ConfigError, match=r"ModeX needs layers from 3 up, and probe offers none"):
        attach(make("beit3"), first_layer=3)


def at_base_size(backbone: str, task: str, *words: str) -> AdaptedModel:
    """What `mwa-train` builds, of shapes alone."""
    arguments = [f"backbone={backbone}", f"task={task}", "adapter=modex", *words]
    if task == "reasoning" and not backbone.startswith("beit3"):
        arguments.append("backbone.pair=true")
    request = read_request(arguments, config_name="train")
    config = compose_groups("train", request.choices)
    apply(config, request)
    with torch.device("meta"):
        made: Backbone = instantiate(config.backbone)
        heads = reasoning_heads(made, USUAL_SHAPES[task]) if task in USUAL_SHAPES else retrieval_heads(made)
        return attach_configured(config, made, heads)


@pytest.mark.parametrize(
    ("backbone", "task", "total", "unused"),
    [
        ("blip_base", "retrieval", 1_349_221, 0),
        ("blip_base", "reasoning", 9_023_846, 0),
        ("albef_base", "retrieval", 1_796_485, 0),
        ("albef_base", "reasoning", 3_213_770, 152_160),
        ("albef_base", "entailment", 2_389_383, 152_160),
    ],
)
def test_released__trains_as_many_parameters_as_the_authors_code(
    backbone: str, task: str, total: int, unused: int
) -> None:
    model = at_base_size(backbone, task, "adapter.variant=released")
    assert parameter_figures(model)["params/trainable"] == total
    assert sum(row.unused for row in parameter_table(model)) == unused


def test_standard__stays_below_twelve_million_on_blip_base_with_two_images() -> None:
    merging, head = 6 * (2 * 768 * 768 + 768), 768 * 768 + 768 + 2 * 768 + 2
    norms = 2 * 768 * (25 + 37)
    expert, coordinated = 25_360, 53_779
    expected = merging + head + norms + 24 * expert + 12 * (expert + 2 * coordinated)
    assert parameter_figures(at_base_size("blip_base", "reasoning"))["params/trainable"] == expected == 9_973_514
    assert expected <= 12_000_000


def test_standard__size_on_beit3_base() -> None:
    adapter = at_base_size("beit3_base", "retrieval").adapter
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 2 * 12 * 2 * 25_360
    assert not any(isinstance(module, CoordinatedExperts) for module in adapter.modules())
    fused = at_base_size("beit3_base", "reasoning").adapter
    assert sum(parameter.numel() for parameter in fused.parameters()) == 2 * 12 * (2 * 25_360 + 53_779)
