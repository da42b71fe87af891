"""`mwa_lightning.load`: model, tokenizer and transform in one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mwa_lightning
from mwa_lightning.adapters.files.adapter_file import save_adapter, trained_state
from mwa_lightning.adapters.mwa import MultiWayAdapter
from mwa_lightning.adapters.none import NoAdapter
from mwa_lightning.backbones.checkpoints import official_state, read_state
from mwa_lightning.backbones.checkpoints.families.clip import transformers_key_map
from mwa_lightning.backbones.checkpoints.families.siglip import siglip_key_map
from mwa_lightning.backbones.checkpoints.loading import parameters_to_fill
from mwa_lightning.backbones.dual import DualEncoder
from mwa_lightning.cli.config.composing import Request, apply, compose_groups
from mwa_lightning.data.images.reader import PictureRule
from mwa_lightning.errors import CheckpointError, ConfigError
from mwa_lightning.hub import Loaded
from mwa_lightning.tasks.model import RetrievalModel
from mwa_lightning.training.assembly.build import adapter_metadata
from mwa_lightning.training.instantiating import OURS
from tests.parity import plain_bert

TINY = compose_groups("train", {"backbone": "beit3_tiny"}).backbone
TEXTS = ["a red circle left of a blue square", "a star"]


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model with as many pieces as the tiny backbone has rows for."""
    folder = tmp_path_factory.mktemp("tokenizer")
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdefghijklmnopqrstuvwxyz"), 6)) for _ in range(900)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*words, *TEXTS]), model_prefix=str(folder / "tiny"), model_type="bpe",
        vocab_size=TINY.vocabulary_size - 2,
        unk_id=0, bos_id=1, eos_id=2, minloglevel=2,
    )  # fmt: skip
    return folder / "tiny.model"


@pytest.fixture
def call(tokenizer_file: Path) -> Callable[..., Loaded]:
    """`load` of the tiny backbone with this tokenizer."""

    def load(checkpoint: str | Path | None = "random", adapter: str | Path | None = None, **options: Any) -> Loaded:
        return mwa_lightning.load("beit3_tiny", checkpoint, adapter, tokenizer=tokenizer_file, **options)

    return load


@pytest.fixture
def weights(call: Callable[..., Loaded], tmp_path: Path) -> Path:
    """A checkpoint of the tiny backbone with official names."""
    model = call().model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.05, generator=torch.Generator().manual_seed(parameter.numel()))
    path = tmp_path / "weights.safetensors"
    save_file(official_state(model.backbone, model.heads), path)
    return path


def embed(loaded: Loaded) -> torch.Tensor:
    """Embeddings of a picture and of the texts."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    with torch.inference_mode():
        image = loaded.model.encode_image(loaded.transform(picture)[None])
        return torch.cat([image, loaded.model.encode_text(*loaded.tokenizer(TEXTS))])


def test_load__frozen_model_from_a_file(call: Callable[..., Loaded], weights: Path) -> None:
    loaded = call(weights)
    assert isinstance(loaded.model.adapter, NoAdapter)
    assert not any(module.training for module in loaded.model.modules())
    assert torch.equal(loaded.model.heads.vision.weight, load_file(weights)["vision_head.weight"])
    embeddings = embed(loaded)
    assert embeddings.shape == (3, TINY.width)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    assert torch.equal(embeddings, embed(call(weights)))


def test_load__image_size_goes_to_backbone_and_transform(call: Callable[..., Loaded], weights: Path) -> None:
    size = TINY.image_size + TINY.patch_size
    loaded = call(weights, image_size=size)
    assert loaded.transform.image_size == loaded.model.backbone.image_size == size
    assert loaded.model.backbone.fingerprint == call(weights).model.backbone.fingerprint
    assert embed(loaded).shape == (3, TINY.width)


def test_load__adapter_file_brings_method_and_settings(
    call: Callable[..., Loaded], weights: Path, tmp_path: Path
) -> None:
    config = compose_groups("train", {"backbone": "beit3_tiny", "adapter": "mwa"})
    apply(config, Request(choices={}, values={"adapter.mid_dim": 5, "adapter.enhancer": "none"}, added={}))
    model = call(weights).model
    adapter = MultiWayAdapter(mid_dim=5, enhancer="none")
    trained = type(model)(backbone=model.backbone, adapter=adapter, heads=model.heads).eval()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0.0, 0.2)
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, trained_state(trained), metadata=adapter_metadata(config, model))

    loaded = call(weights, path)
    assert isinstance(loaded.model.adapter, MultiWayAdapter)
    assert (loaded.model.adapter.mid_dim, loaded.model.adapter.enhancer_form) == (5, "none")
    expected = embed(Loaded(trained, loaded.tokenizer, loaded.transform))
    assert torch.equal(embed(loaded), expected)
    assert not torch.allclose(embed(call(weights)), expected, atol=1e-3)

    with pytest.raises(CheckpointError, match="trained on beit3_tiny with weights"):
        call("random", path)
    # The kind of file is told by its content, not by its name.
    renamed = path.rename(tmp_path / "adapter.bin")
    assert torch.equal(embed(call(weights, renamed)), expected)
    path = renamed.rename(path)

    # A file may come from anywhere: what it names as its class is not imported.
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    strange = metadata | {
        "config": metadata["config"].replace("mwa_lightning.adapters.mwa.MultiWayAdapter", "os.system")
    }
    save_file(load_file(path), path, strange)
    with pytest.raises(CheckpointError, match=r"its method os.system is none of full, head_only, modex, mwa, none"):
        call(weights, path)


def test_load__adapter_file_brings_its_images(call: Callable[..., Loaded], weights: Path, tmp_path: Path) -> None:
    size = TINY.image_size + TINY.patch_size
    trained = call(weights, "head_only", image_size=size).model
    config = compose_groups("train", {"backbone": "beit3_tiny", "adapter": "head_only"})
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, trained_state(trained), metadata=adapter_metadata(config, trained))
    loaded = call(weights, path)
    assert loaded.transform.image_size == loaded.model.backbone.image_size == size
    other = call(weights, path, image_size=TINY.image_size, background="black").transform
    assert (other.image_size, other.rule) == (TINY.image_size, PictureRule(exif=False, background=(0, 0, 0)))

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert loaded.transform.rule == PictureRule(exif=False)  # that of data=scenes
    save_file(load_file(path), tmp_path / "strange.safetensors", metadata | {"pictures": "[]"})
    with pytest.raises(CheckpointError, match="metadata do not say how images are read; give the file"):
        call(weights, tmp_path / "strange.safetensors")
    save_file(load_file(path), tmp_path / "strange.safetensors", metadata | {"task": "mine"})
    with pytest.raises(
        ConfigError, match=r"strange\.safetensors: was trained for task=mine, and there is no such task"
    ):
        call(weights, tmp_path / "strange.safetensors")
    del metadata["pictures"]
    del metadata["image_size"]  # as files of version 0.1 are
    save_file(load_file(path), path, metadata)
    plain = call(weights, path).transform
    assert (plain.image_size, plain.rule) == (TINY.image_size, PictureRule())


def test_load__released_adapter_brings_its_form(call: Callable[..., Loaded], weights: Path, tmp_path: Path) -> None:
    shapes = {
        f"adaptmlp_{stream}.{part}": shape
        for stream in ("text", "vision")
        for part, shape in (("down_proj", (7, TINY.width)), ("up_proj", (TINY.width, 7)))
    }
    state = {}
    for layer in range(TINY.depth):
        for name, shape in shapes.items():
            key = f"beit3.encoder.layers.{layer}.{name}"
            state |= {f"{key}.weight": torch.randn(shape), f"{key}.bias": torch.randn(shape[0])}
    torch.save({"model": state}, tmp_path / "released")
    adapter = call(weights, tmp_path / "released").model.adapter
    assert isinstance(adapter, MultiWayAdapter)
    assert (adapter.mid_dim, adapter.enhancer_form, adapter.scale) == (7, "none", 0.6)
    down = adapter.get_parameter("extractors.vision_2.bottleneck.down.weight")
    assert torch.equal(down, state["beit3.encoder.layers.2.adaptmlp_text.down_proj.weight"])


def test_load__name_of_a_method_gives_it_freshly_made(call: Callable[..., Loaded], weights: Path) -> None:
    loaded = call(weights, "mwa")
    assert isinstance(loaded.model.adapter, MultiWayAdapter)
    assert torch.equal(embed(loaded), embed(call(weights)))


def test_load__works_within_an_application_that_uses_hydra(call: Callable[..., Loaded], tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("answer: 42")
    with initialize_config_dir(version_base="1.3", config_dir=str(tmp_path)):
        call()
        assert compose("theirs").answer == 42


def test_load__shipped_weights_by_default() -> None:
    loaded = mwa_lightning.load("beit3_tiny")
    assert loaded.model.backbone.fingerprint != "random"
    assert embed(loaded).shape == (3, TINY.width)


@pytest.mark.parametrize(
    ("name", "options", "error", "said"),
    [
        ("beit3_bass", {}, ConfigError, "Did you mean beit3_base"),
        ("vit", {}, ConfigError, "Choose one of .*beit3_base, beit3_large, beit3_tiny"),
        (
            "beit3_tiny",
            {"task": "retrival"},
            ConfigError,
            "task=retrival: there is no such task. Did you mean retr",
        ),
        ("beit3_tiny", {"checkpoint": "a" * 300}, CheckpointError, "a: cannot be read .File name too long"),
        ("beit3_tiny", {"adapter": "a" * 300}, CheckpointError, "a: cannot be read .File name too long"),
        ("beit3_tiny", {"adapter": "mwaa"}, ConfigError, "neither a file nor a method. Did you mean mwa"),
        ("beit3_tiny", {"adapter": "absent.safetensors"}, ConfigError, "neither a file nor a method"),
        ("beit3_tiny", {"checkpoint": "absent.pth"}, CheckpointError, "absent.pth: no such checkpoint"),
        ("beit3_tiny", {"checkpoint": "random", "image_size": TINY.image_size + 1}, ConfigError, "does not divide it"),
    ],
)
def test_load__mistakes_are_one_line(
    tokenizer_file: Path, name: str, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        mwa_lightning.load(name, tokenizer=tokenizer_file, **options)
    assert "\n" not in str(caught.value)


def test_load__what_the_run_had_set_on_its_backbone(call: Callable[..., Loaded], tmp_path: Path) -> None:
    settings = {"resize": "crop", "interpolation": "bilinear", "image_mean": [0.1, 0.2, 0.3], "max_text_length": 9}
    config = compose_groups("train", {"backbone": "beit3_tiny", "adapter": "head_only"})
    values = {f"backbone.{key}": value for key, value in settings.items()}
    apply(config, Request(choices={}, values=values, added={}))
    model = call().model
    model.heads.requires_grad_(True)
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, trained_state(model), metadata=adapter_metadata(config, model))
    loaded = call("random", tmp_path)  # the run directory
    assert (loaded.transform.resize, loaded.transform.interpolation) == ("crop", "bilinear")
    assert loaded.model.backbone.image_mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert loaded.tokenizer([" ".join(TEXTS * 9)])[0].shape == (1, 9)


def test_load__metadata_of_a_stranger(call: Callable[..., Loaded], tmp_path: Path) -> None:
    """Nothing that they say is resolved, or allocated where the file's own tensors say otherwise."""
    model = call("random", "mwa").model
    config = compose_groups("train", {"backbone": "beit3_tiny", "adapter": "mwa"})
    metadata, state, path = adapter_metadata(config, model), trained_state(model), tmp_path / "adapter.safetensors"
    followed: list[str] = []
    OmegaConf.register_new_resolver("strange", lambda word: followed.append(word) or 64, replace=True)
    for change, said in (
        ({"mid_dim": "${strange:x}"}, "are not followed"),
        ({"mid_dim": 10**9}, "says adapter.mid_dim=1000000000, and no tensor in it is that large"),
        ({"mid_dim": 65}, "does not fit this adapter"),
        ({"first_layer": 99}, "offers none for this task"),
    ):
        save_adapter(path, state, metadata=metadata | {"config": metadata["config"] | change})
        with pytest.raises((CheckpointError, ConfigError), match=said):
            call("random", path)
    for value in (float("nan"), float("inf")):
        name = next(name for name in state if name.endswith("up.bias"))
        save_adapter(path, state | {name: torch.full_like(state[name], value)}, metadata=metadata)
        with pytest.raises(CheckpointError, match="values that are no finite fractions"):
            call("random", path)
    assert not followed


@pytest.mark.parametrize("options", [{}, {"checkpoint": "random"}])
def test_load__base_without_its_files_names_them(options: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)beit3_base_itc_patch16_224\.pth.*beit3\.spm"):
        mwa_lightning.load("beit3_base", **options)


@pytest.mark.parametrize("name", ["clip_tiny", "siglip2_tiny"])
def test_load__dual_encoders(name: str, tmp_path: Path) -> None:
    drawn = mwa_lightning.load(name, "random", "mwa")
    ids, mask = drawn.tokenizer(TEXTS)
    assert bool(mask.all()) == (name == "siglip2_tiny")
    assert ids.shape[1] == (32 if name == "siglip2_tiny" else int(mask.sum(dim=1).max()))
    assert drawn.transform.resize == ("stretch" if name == "siglip2_tiny" else "crop")
    assert drawn.transform.interpolation == ("bilinear" if name == "siglip2_tiny" else "bicubic")
    with torch.no_grad():
        for parameter in drawn.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    frozen = RetrievalModel(backbone=DualEncoder(**options_of(name)), adapter=NoAdapter(), heads=drawn.model.heads)
    frozen.backbone.load_state_dict(drawn.model.backbone.state_dict())
    key_map = (siglip_key_map if name == "siglip2_tiny" else transformers_key_map)(frozen.backbone)
    ours = parameters_to_fill(frozen.backbone, frozen.heads)
    state = {
        key: torch.cat([ours[part] for part in key_map.parts(key)]) if len(key_map.parts(key)) > 1
        else ours[key_map.parts(key)[0]].detach().clone()
        for key in key_map.names
    }  # fmt: skip
    save_file(state, tmp_path / "model.safetensors")
    loaded = mwa_lightning.load(name, tmp_path)
    assert loaded.model.backbone.fingerprint != "random"
    assert torch.equal(embed(loaded), embed(Loaded(frozen.eval(), loaded.tokenizer, loaded.transform)))
    with pytest.raises(CheckpointError, match="has no weights"):
        mwa_lightning.load(name)
    other, form = ("siglip2_tiny", "clip") if name == "clip_tiny" else ("clip_tiny", "siglip")
    with pytest.raises(CheckpointError, match=f"choose backbone={form}"):
        mwa_lightning.load(other, tmp_path)


@pytest.mark.parametrize("kind", ["blip", "albef"])
def test_load__fusion_encoders(kind: plain_bert.Kind, tmp_path: Path) -> None:
    """From files with official names, of one image and of two, and adapters of either form."""
    name = f"{kind}_tiny"
    for task, images in (("retrieval", 1), ("entailment", 1), ("reasoning", 2)):
        path = tmp_path / f"{task}.pth"
        state = fusion_file(name, pair=images == 2)
        torch.save({"model": state}, path)
        loaded = mwa_lightning.load(name, path, "modex", task=task)
        assert torch.equal(loaded.model.backbone.vision_norm.weight, state["visual_encoder.norm.weight"])
        assert loaded.model.backbone.images == images
        ids, mask = loaded.tokenizer(TEXTS)
        assert ids.shape[1] == int(mask.sum(dim=1).max())
        with torch.no_grad():
            for parameter in loaded.model.adapter.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        config = compose_groups("train", {"backbone": name, "adapter": "modex", "task": task})
        adapter = tmp_path / f"{task}.safetensors"
        save_adapter(adapter, trained_state(loaded.model), metadata=adapter_metadata(config, loaded.model))
        again = mwa_lightning.load(name, path, adapter)
        if task == "retrieval":
            assert torch.equal(embed(loaded), embed(again))
            continue
        size = loaded.transform.image_size
        pictures = torch.randint(0, 256, (len(TEXTS), images, 3, size, size), dtype=torch.uint8)
        with torch.inference_mode():
            assert torch.equal(loaded.model(pictures, ids, mask), again.model(pictures, ids, mask))
    with pytest.raises(CheckpointError, match="is configured with"):
        mwa_lightning.load("albef_tiny" if kind == "blip" else "blip_tiny", tmp_path / "retrieval.pth")


def fusion_file(name: str, *, pair: bool) -> dict[str, torch.Tensor]:
    """A file of the sizes of a config, with the names of the original code."""
    options = options_of(name)
    kind: plain_bert.Kind = "blip" if name == "blip_tiny" else "albef"
    return plain_bert.official_state(
        kind, pair=pair, width=options["vision_width"], text_width=options["text_width"],
        depth=options["vision_depth"], layers=options["text_layers"] + options["fusion_layers"],
        vocabulary=options["vocabulary_size"], patch=options["patch_size"],
        grid=options["image_size"] // options["patch_size"], positions=options["text_positions"],
        embedding=options["embedding_width"], merge_from=options.get("merge_from", 0),
        token_types="token_types" in options,
    )  # fmt: skip


def options_of(name: str) -> dict[str, Any]:
    node = compose_groups("train", {"backbone": name}).backbone
    return {str(key): value for key, value in node.items() if key not in OURS}


def test_load__habits_of_other_libraries_work(tmp_path: Path) -> None:
    """As with open_clip and transformers: eval, no_grad, one text, ids and mask in one, half precision."""
    model, tokenizer, transform = mwa_lightning.load("beit3_tiny")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    picture.save(tmp_path / "photo.png")
    with torch.no_grad():
        images = model.eval().encode_image(transform(picture).unsqueeze(0).to(model.device))
        assert torch.equal(images, model.encode_image(transform([str(tmp_path / "photo.png")])))
        text = model.encode_text(tokenizer("a dog"))
        assert text.shape == (1, TINY.width)
        assert torch.equal(text, model.encode_text(*tokenizer(["a dog"])))
        assert torch.allclose(model.half().encode_text(tokenizer("a dog")), text, atol=0.01)
    model, tokenizer, transform = mwa_lightning.load("clip_tiny", "random", "mwa", task="reasoning")
    pair = transform([picture, picture])[None]
    with torch.no_grad():
        logits = model(pair, tokenizer("a star in both"))
        assert torch.allclose(model.to(torch.bfloat16)(pair, tokenizer("a star in both")), logits, atol=0.05)
    with pytest.raises(ConfigError, match="do not fit: this model takes 2 with each text"):
        model(pair[:, :1], tokenizer("a star in both"))


def test_load__one_of_several_models_in_a_file(tmp_path: Path) -> None:
    state = read_state("asset://beit3_tiny.safetensors")
    torch.save({"a": {name: tensor + 1 for name, tensor in state.items()}, "b": state}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"several models, a, b; say which by backbone\.checkpoint_key=a"):
        mwa_lightning.load("beit3_tiny", tmp_path / "two.pth")
    chosen = mwa_lightning.load("beit3_tiny", tmp_path / "two.pth", checkpoint_key="b")
    assert chosen.model.backbone.fingerprint == mwa_lightning.load("beit3_tiny").model.backbone.fingerprint
