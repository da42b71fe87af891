"""Every YAML file, found by discovery: it composes, its values have rules and comments, its parts build."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from mwa_lightning.cli.config.composing import apply, compose_groups, read_request
from mwa_lightning.cli.config.consistency import check_model, check_training
from mwa_lightning.cli.config.groups import group_options, groups_of
from mwa_lightning.cli.config.schema import RULES
from mwa_lightning.cli.config.search_path import config_directory
from mwa_lightning.training.assembly.build import attach, build_backbone
from mwa_lightning.training.assembly.setup import make_task, make_trainer
from mwa_lightning.training.distributed.processes import Processes
from mwa_lightning.training.instantiating import instantiate
from mwa_lightning.training.runs.run_directory import RunDirectory

FILES = sorted(path.relative_to(config_directory()) for path in config_directory().rglob("*.yaml"))
# What experiments share; nobody chooses these.
RECIPES = [path.stem for path in FILES if path.parent.name == "recipe"]
CHOICES = [(path.parent.name, path.stem) for path in FILES if path.parent.name not in ("", "recipe")]
EXPERIMENTS = [name for group, name in CHOICES if group == "experiment"]
# What says what a part is rather than how it behaves; nobody sets these.
DESCRIPTIVE = {"_target_", "official", "layout", "backbone.name", "logger.name", "task.name", "launcher.name"}


def composed(*arguments: str, config_name: str = "train") -> DictConfig:
    request = read_request(arguments, config_name=config_name)
    config = compose_groups(config_name, request.choices)
    apply(config, request)
    return config


def root_of(group: str) -> str:
    """A configuration that has a group."""
    return "train" if group in groups_of("train") else "tune"


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_discovery__finds_what_the_commands_promise() -> None:
    commands = {"train", "evaluate", "prepare", "multirun", "tune", "compare"}
    assert {path.stem for path in FILES if path.parent == Path()} == commands
    assert {*groups_of("train"), *groups_of("tune")} == {group for group, _ in CHOICES}
    assert set(group_options("launcher")) == {"local", "slurm"}
    assert {"beit3_tiny", "beit3_base", "beit3_large", "clip_tiny", "clip_b32", "clip_b16", "clip_l14"} <= set(
        group_options("backbone")
    )
    assert {"siglip2_tiny", "siglip2_base", "siglip2_large"} <= set(group_options("backbone"))
    assert {"mwa", "full", "head_only", "none"} <= set(group_options("adapter"))
    assert {"scenes", "coco", "flickr30k", "karpathy", "pairs"} <= set(group_options("data"))
    assert {"scenes_nlvr2", "nlvr2", "snli_ve", "jsonl"} <= set(group_options("data"))
    assert {"cpu", "gpu", "ddp", "fsdp"} <= set(group_options("trainer"))
    assert {"csv", "tensorboard", "wandb"} <= set(group_options("logger"))
    sizes_and_data = {f"{size}_{data}" for size in ("base", "large") for data in ("coco", "flickr30k")}
    assert {f"{method}_beit3_{rest}" for method in ("mwa", "full") for rest in sizes_and_data} <= set(EXPERIMENTS)
    backbones = ("beit3_base", "clip_b16", "siglip2_base", "blip_base", "albef_base")
    data = ("coco", "flickr30k", "nlvr2")
    assert {f"{m}_{backbone}_{d}" for m in ("mwa", "modex") for backbone in backbones for d in data} <= set(EXPERIMENTS)
    assert {f"{m}_beit3_{size}_nlvr2" for m in ("mwa", "modex", "full") for size in ("base", "large")} <= set(
        EXPERIMENTS
    )
    assert {"retrieval", "reasoning", "entailment"} == set(group_options("task"))


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=[f"{group}={choice}" for group, choice in CHOICES])
def test_choice__composes_and_every_value_has_a_rule(group: str, choice: str) -> None:
    config = composed(f"{group}={choice}", config_name=root_of(group))
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    unruled = {
        key
        for key in leaves(container)
        if key not in RULES and key not in DESCRIPTIVE and key.rpartition(".")[2] not in DESCRIPTIVE
    }
    assert unruled == set()


def test_rules__all_belong_to_a_key() -> None:
    existing: set[str] = set()
    for file in FILES:
        if file.parent.name not in ("experiment", "recipe"):
            group = f"{file.parent.name}." if file.parent.name else ""
            existing |= leaves(yaml.safe_load((config_directory() / file).read_text()), group).keys()
    assert set(RULES) - existing == set()


@pytest.mark.parametrize("file", FILES, ids=str)
def test_file__opens_with_a_comment_and_explains_every_key(file: Path) -> None:
    lines = (config_directory() / file).read_text().splitlines()
    assert next(line for line in lines if "@package" not in line).startswith("# ")
    if file.parent.name in ("experiment", "recipe"):
        return  # its keys are explained where they are defined
    body = lines[lines.index("", 1) :] if "" in lines else lines
    keys = [line for line in body if re.match(r"[a-z]\w*:", line)]
    unexplained = [
        line
        for line in keys
        if " # " not in line and line.partition(":")[0] not in {"defaults", "name", "layout", "_target_"}
    ]
    assert unexplained == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment__opens_with_its_command(name: str) -> None:
    text = (config_directory() / "experiment" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n# ")
    command = "mwa-train" if name == "scenes_mwa" else f"mwa-train experiment={name}"
    assert f"#   {command}" in text.splitlines()[2]


def test_recipe__is_shared() -> None:
    """Otherwise it belongs into the one experiment that has it."""
    texts = [(config_directory() / "experiment" / f"{name}.yaml").read_text() for name in EXPERIMENTS]
    assert RECIPES
    for recipe in RECIPES:
        assert sum(f"- /recipe/{recipe}\n" in text for text in texts) >= 2, recipe


def test_experiment__is_what_its_name_says() -> None:
    seen: dict[str, str] = {}
    for name in EXPERIMENTS:
        config = composed(f"experiment={name}")
        if not name.startswith("scenes_"):
            method, _, rest = name.partition("_")
            assert rest == f"{config.backbone.name}_{config.data.layout}"
            names = {"MultiWayAdapter": "mwa", "FullFineTuning": "full", "ModeX": "modex"}
            assert names[config.adapter._target_.rpartition(".")[2]] == method
        config.name = None
        assert seen.setdefault(OmegaConf.to_yaml(config), name) == name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment__passes_the_checks_before_training(name: str, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.touch()
    config = composed(f"experiment={name}", f"backbone.checkpoint={weights}", f"backbone.tokenizer={weights}")
    check_model(config)
    check_training(config)
    assert config.name == name


@pytest.mark.parametrize(
    ("name", "lr", "layer_decay", "epochs", "warmup"),
    [
        # BEiT-3, get_started_for_retrieval.md
        ("full_beit3_base_coco", 2e-4, 0.65, 15, 3),
        ("full_beit3_large_coco", 5e-5, 0.85, 15, 3),
        ("full_beit3_base_flickr30k", 1e-4, 0.65, 20, 5),
        ("full_beit3_large_flickr30k", 5e-5, 0.85, 20, 5),  # its learning rate is not published
        # MultiWay-Adapter, README; its layer decay acted on the adapters, ours does not
        ("mwa_beit3_large_coco", 2e-4, 1.0, 30, 3),
    ],
)
def test_experiment__official_settings(name: str, lr: float, layer_decay: float, epochs: int, warmup: int) -> None:
    config = composed(f"experiment={name}")
    expected = {
        "optim.lr": lr,
        "optim.layer_decay": layer_decay,
        "optim.warmup_epochs": warmup,
        "optim.weight_decay": 0.05,
        "trainer.max_epochs": epochs,
        "backbone.drop_path": 0.2,
        "backbone.image_size": 384 if name.startswith("full") else 224,
        "task.mask_same_image": False,
        "data.randaugment": False,
        "data.exif": False,
    }
    assert {key: OmegaConf.select(config, key) for key in expected} == expected
    trainer = config.trainer
    global_batch = config.data.batch_size * trainer.devices * trainer.num_nodes
    assert trainer.accumulate_grad_batches == 1
    assert global_batch == (3072 if name.startswith("full") else 128)


@pytest.mark.parametrize("choice", ["adapter=mwa", "experiment=mwa_beit3_large_coco", "experiment=mwa_beit3_base_coco"])
def test_adapter__is_that_of_the_released_code_with_the_enhancer_of_the_paper(choice: str) -> None:
    adapter = composed(choice).adapter
    parts = {key: adapter[key] for key in ("mid_dim", "scale", "dropout", "extractor_vision", "extractor_text")}
    assert parts == {"mid_dim": 64, "scale": 0.6, "dropout": 0.1, "extractor_vision": True, "extractor_text": True}
    assert (adapter.enhancer, adapter.enhancer_dim, adapter.first_layer) == ("bottleneck", 192, 0)


@pytest.mark.parametrize(
    ("size", "lr", "layer_decay"),
    [("base", 7e-4, 0.65), ("large", 3e-4, 0.85)],  # BEiT-3, get_started_for_nlvr2.md
)
def test_experiment__official_settings_of_nlvr2(size: str, lr: float, layer_decay: float) -> None:
    config = composed(f"experiment=full_beit3_{size}_nlvr2")
    expected = {
        "optim.lr": lr,
        "optim.layer_decay": layer_decay,
        "optim.warmup_epochs": 5,
        "optim.weight_decay": 0.2,
        "trainer.max_epochs": 20,
        "backbone.drop_path": 0.2,
        "backbone.image_size": 224,
        "data.randaugment": False,
        "task.name": "reasoning",
        "training.monitor": "val/accuracy",
    }
    assert {key: OmegaConf.select(config, key) for key in expected} == expected


@pytest.mark.parametrize(
    "name", [name for name in EXPERIMENTS if name.startswith(("mwa_", "modex_")) or "_nlvr2" in name]
)
def test_experiment__global_batch(name: str) -> None:
    """That of the adapter's recipe, in whatever factors; only a queue gives accumulated batches their negatives."""
    config = composed(f"experiment={name}")
    trainer = config.trainer
    expected = {"nlvr2": 256, "mwa": 128, "modex_coco": 512, "modex_flickr30k": 256}
    method, data = name.split("_")[0], name.split("_")[-1]
    batch = config.data.batch_size * trainer.devices * trainer.num_nodes * trainer.accumulate_grad_batches
    assert batch == expected.get(data, expected.get(f"{method}_{data}", expected["mwa"]))
    if config.task.name == "retrieval":
        assert trainer.accumulate_grad_batches == 1 or config.task.queue_size is not None


@pytest.mark.parametrize(
    ("family", "queue", "text", "magnitude", "cosine"),
    [
        # salesforce/BLIP, configs/retrieval_{coco,flickr}.yaml; salesforce/ALBEF, configs/Retrieval_{coco,flickr}.yaml
        ("blip", 57600, 35, 5, True),
        ("albef", 65536, 30, 7, False),
    ],
)
@pytest.mark.parametrize(("data", "candidates"), [("coco", 256), ("flickr30k", 128)])
def test_experiment__official_settings_of_fusion_encoders(
    family: str, queue: int, text: int, magnitude: int, cosine: bool, data: str, candidates: int
) -> None:
    config = composed(f"experiment=mwa_{family}_base_{data}")
    expected = {
        "backbone.image_size": 384,
        "backbone.text_cleaning": family,
        "backbone.max_words": 30,
        "backbone.max_text_length": text,
        "data.batch_size": 32,
        "data.randaugment": True,
        "data.randaugment_magnitude": magnitude,
        "data.crop_scale": [0.5, 1.0],
        "task.queue_size": queue,
        "task.momentum": 0.995,
        "task.distillation": 0.4,
        "task.distillation_epochs": 1,
        "task.matching_negatives": "all" if (family, data) == ("blip", "coco") else "own",
        "task.rerank": candidates,
        "task.rerank_cosine": cosine,
    }
    assert {key: OmegaConf.select(config, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("family", "words", "magnitude", "swaps"),
    # salesforce/BLIP, data/nlvr_dataset.py and data/__init__.py; salesforce/ALBEF, dataset/ likewise
    [("blip", 40, 5, True), ("albef", 30, 7, False)],
)
def test_experiment__official_settings_of_fusion_encoders_on_nlvr2(
    family: str, words: int, magnitude: int, swaps: bool
) -> None:
    config = composed(f"experiment=mwa_{family}_base_nlvr2")
    expected = {
        "backbone.image_size": 384,
        "backbone.pair": True,
        "backbone.text_cleaning": family,
        "backbone.max_words": words,
        "data.batch_size": 16,
        "data.randaugment_magnitude": magnitude,
        "data.crop_scale": [0.5, 1.0],
        "data.swap_images": swaps,
    }
    assert {key: OmegaConf.select(config, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("data", "lr", "floor", "decay", "accumulated", "image_size"),
    [
        # zhangy0822/ModeX, lavis/projects/albef/train/{ret_coco,ret_flickr30k,nlvr}_ft.yaml
        ("coco", 5e-4, 1e-7, 0.05, 8, 384),
        ("flickr30k", 5e-4, 1e-7, 0.05, 4, 384),
        ("nlvr2", 9e-4, 1e-6, 0.02, 8, 384),
    ],
)
def test_experiment__released_settings_of_modex(
    data: str, lr: float, floor: float, decay: float, accumulated: int, image_size: int
) -> None:
    config = composed(f"experiment=modex_albef_base_{data}")
    expected = {
        "optim.lr": lr,
        "optim.min_lr": floor,
        "optim.weight_decay": decay,
        "optim.warmup_steps": 1000 // accumulated,
        "trainer.max_epochs": 10,
        "backbone.image_size": image_size,
        "backbone.text_cleaning": "blip",
        "backbone.max_words": 50,
        "data.randaugment_magnitude": 5,
        "adapter.mid_dim": 16,
        "adapter.temperature": 10,
        "seed": 0 if data == "flickr30k" else 42,
    }
    if data != "nlvr2":
        expected["task.distillation_epochs"] = 2
    assert {key: OmegaConf.select(config, key) for key in expected} == expected


# Keys of either kind of backbone, one transformer for all streams or one for each; those that it has not are left out.
SMALL = "width=32 depth=2 heads=4 ffn_width=64 vocabulary_size=64 image_size=32 patch_size=16 checkpoint=random "
SMALL += "vision_width=32 vision_depth=2 vision_heads=4 vision_ffn_width=64 embedding_width=32 "
SMALL += "text_width=32 text_depth=2 text_layers=2 text_heads=4 text_ffn_width=64"
BUILT = [pair for pair in CHOICES if pair[0] in ("backbone", "adapter", "task", "data", "trainer", "experiment")]


def statements(config: DictConfig) -> bool:
    """Whether the data is of labelled statements."""
    return str(config.data._target_).endswith(".StatementDataModule")


@pytest.mark.parametrize(("group", "choice"), BUILT, ids=[f"{group}={choice}" for group, choice in BUILT])
def test_choice__instantiates(group: str, choice: str, tmp_path: Path) -> None:
    """At tiny size, by what a run builds its parts with: each takes exactly the keys of its file."""
    here = ("trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=1", "data.num_workers=0")
    plain = composed(f"{group}={choice}")
    small = [f"backbone.{pair}" for pair in SMALL.split() if pair.partition("=")[0] in plain.backbone]
    if plain.backbone.text_positions is None:  # as the weights say
        small += ["backbone.text_positions=64", "backbone.max_text_length=64"]
    # A set of statements has a task of its own.
    task = ["task=reasoning"] if statements(plain) and group == "data" else []
    config = composed(f"{group}={choice}", *task, *small, *here)
    backbone, heads = build_backbone(config)
    model = attach(config, backbone, heads)
    assert type(model.adapter).__name__ == config.adapter._target_.rpartition(".")[2]
    assert make_task(config, model).model is model
    data = instantiate(config.data, tokenizer=None, image_size=config.backbone.image_size, seed=1, split="test")
    assert data.batch_size == config.data.batch_size
    trainer = make_trainer(config, RunDirectory(tmp_path), Processes(config))
    assert trainer.max_epochs == config.trainer.max_epochs
