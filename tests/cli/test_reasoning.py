"""The commands on statements about images, with the shipped backbone: a few steps on a few samples."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import mwa_lightning
from mwa_lightning.cli import evaluate, train
from mwa_lightning.data.scenes.writing import write_scenes, write_scenes_nlvr2
from tests.parity.plain_bert import official_state

SHORT = ("trainer.max_steps=2", "optim.warmup_epochs=0", "data.batch_size=8", "callbacks.progress_bar=false")


@pytest.fixture(scope="module")
def statements(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "statements"
    write_scenes_nlvr2(root, domain="target", seed=3, train=16, dev=8, test=8)
    return root


@pytest.fixture(scope="module")
def run_directory(statements: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    arguments = [f"run_dir={directory}", f"data.root={statements}", "save_predictions=true", *SHORT]
    assert train.main(["experiment=scenes_modex", *arguments]) == 0
    return directory


def figures(directory: Path) -> dict[str, float]:
    return json.loads((directory / "metrics.json").read_text())


def test_train__then_evaluate_then_load(
    run_directory: Path, elsewhere: Path, statements: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = figures(run_directory)
    assert {"test/accuracy", "test/consistency", "test/majority", "val/accuracy"} <= left.keys()
    assert evaluate.main([f"run={run_directory}", "run_dir=again"]) == 0
    assert figures(elsewhere / "again")["test/accuracy"] == left["test/accuracy"]
    shown = capsys.readouterr().out
    assert "Statements on the test split, in percent" in shown
    assert "always the most common answer" in shown

    loaded = mwa_lightning.load("beit3_tiny", adapter=run_directory / "adapter.safetensors")
    assert loaded.model.heads.shape == (2, ("False", "True"))
    sides = [statements / "images" / "test1" / f"test1-0-0-img{side}.png" for side in range(2)]
    pair = torch.stack([loaded.transform(Image.open(side)) for side in sides])
    lines = (statements / "nlvr" / "nlvr2" / "data" / "test1.json").read_text().splitlines()
    with torch.inference_mode():
        logits = loaded.model(pair[None], *loaded.tokenizer([json.loads(lines[0])["sentence"]]))
    with safe_open(run_directory / "predictions.safetensors", framework="pt") as file:
        assert torch.allclose(logits[0], file.get_tensor("logits")[0], atol=1e-5)


def test_coordinator__is_logged_drawn_and_saved_token_by_token(run_directory: Path, elsewhere: Path) -> None:
    with (run_directory / "metrics.csv").open() as file:
        logged = {row["name"] for row in csv.DictReader(file) if row["name"].startswith("coordinator/")}
    depth = mwa_lightning.load("beit3_tiny").model.backbone.depth
    places = {f"{branch}_{layer}" for branch in ("self_attn", "ffn") for layer in range(depth)}
    assert logged == {f"coordinator/{p}/{figure}" for p in places for figure in ("text", "vision", "cross", "entropy")}
    assert Image.open(run_directory / "coordinator.png").size[0] > 100

    assert evaluate.main([f"run={run_directory}", "run_dir=again", "save_coordinator=true"]) == 0
    saved = load_file(elsewhere / "again" / "coordinator.safetensors")
    assert saved.keys() == {f"{p}.{kind}" for p in places for kind in ("weights", "sample", "position", "run")}
    weights, sample, run = (saved[f"ffn_0.{kind}"] for kind in ("weights", "sample", "run"))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)))
    # 8 statements, a pass for each of their two pictures, as many tokens in one as in the other.
    assert set(sample.tolist()) == set(range(8))
    assert (run == 0).sum() == (run == 1).sum() == len(run) / 2
    assert weights.std(dim=0).min() > 0


def test_eval__of_other_classes(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([f"run={run_directory}", "data.classes=['True','False']"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert (
        "trained on 2 images and the classes False, True, and these statements have 2 images and the classes" in error
    )


def test_eval__without_a_trained_head(statements: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["task=reasoning", "data=scenes_nlvr2", f"data.root={statements}", "adapter=none"]
    assert evaluate.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "has no head for these statements" in error


@pytest.mark.parametrize("images", [1, 3])
def test_train__own_jsonl_with_any_number_of_images_and_classes(images: int, elsewhere: Path, statements: Path) -> None:
    picture = statements / "images" / "test1" / "test1-0-0-img0.png"
    shutil.copy(picture, elsewhere / "a.png")
    lines = [
        {"images": ["a.png"] * images, "text": f"there is a {word}", "label": label, "split": split}
        for split in ("train", "train", "train", "val", "test")
        for word, label in (("circle", "yes"), ("star", "no"), ("kite", "perhaps"))
    ]
    (elsewhere / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = ["task=entailment", "data=jsonl", f"data.root={elsewhere}", "data.num_workers=0", "run_dir=run"]
    assert train.main([*own, *SHORT, "data.batch_size=4", "task.label_smoothing=0.1"]) == 0
    with safe_open(elsewhere / "run" / "adapter.safetensors", framework="pt") as file:
        assert file.get_slice("heads.dense2.weight").get_shape()[0] == 3
        assert file.get_slice("heads.norm1.weight").get_shape() == [2 * images * 128]
        assert json.loads(file.metadata()["classes"]) == ["no", "perhaps", "yes"]
        assert file.metadata()["task"] == "entailment"


def missing_second_image(root: Path) -> None:
    (root / "images" / "dev" / "dev-0-1-img1.png").unlink()


def unknown_label(root: Path) -> None:
    change(root, "label", "Maybe")


def no_statement(root: Path) -> None:
    change(root, "sentence", " ")


def no_token(root: Path) -> None:
    """A zero-width space is no blank, but the tokenizer leaves nothing of it."""
    change(root, "sentence", "\u200b")


def identifier_twice(root: Path) -> None:
    change(root, "identifier", "test1-0-0-1")


def change(root: Path, key: str, value: str) -> None:
    file = root / "nlvr" / "nlvr2" / "data" / "test1.json"
    first, *rest = file.read_text().splitlines(keepends=True)
    file.write_text("".join([json.dumps(json.loads(first) | {key: value}) + "\n", *rest]))


DAMAGES: dict[Callable[[Path], None], str] = {
    missing_second_image: "dev-0-1-img1.png",
    unknown_label: "Maybe",
    no_statement: "no words",
    no_token: "split test: the text of test1-0-0-0, '\\u200b', has no tokens",
    identifier_twice: "test1-0-0-1",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_train__damaged_data(
    damage: Callable[[Path], None], statements: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = elsewhere / "statements"
    shutil.copytree(statements, root)
    damage(root)
    own = ["task=reasoning", "data=nlvr2", f"data.root={root}", "data.num_workers=0"]
    assert train.main([*own, *SHORT, "run_dir=run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mwa-train: error: ")
    assert error.count("\n") == 1
    assert DAMAGES[damage] in error
    assert not (elsewhere / "run").exists()


def test_train__retrieval_with_the_form_for_two_images(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(elsewhere / "scenes", domain="target", seed=3, train=16, val=4, test=4)
    own = ["backbone=blip_tiny", "backbone.checkpoint=random", "data=scenes", f"data.root={elsewhere / 'scenes'}"]
    assert train.main([*own, *SHORT, "backbone.pair=true", "run_dir=run"]) == 2
    assert (
        "error: blip_tiny in its form for two images has no heads of retrieval: set backbone.pair=false"
        in capsys.readouterr().err.splitlines()[-1]
    )
    assert not (elsewhere / "run").exists()


@pytest.mark.parametrize("option", ["task.rerank=64", "task.queue_size=64"])
def test_train__matching_on_a_dual_encoder(option: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(elsewhere / "scenes", domain="target", seed=3, train=16, val=4, test=4)
    own = ["backbone=clip_tiny", "backbone.checkpoint=random", "data=scenes", f"data.root={elsewhere / 'scenes'}"]
    assert train.main([*own, *SHORT, option, "run_dir=run"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"mwa-train: error: {option}: clip_tiny has no head for image-text matching")
    assert not (elsewhere / "run").exists()


def test_train__long_statements_are_cut_and_counted(
    elsewhere: Path, statements: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["task=reasoning", "data=scenes_nlvr2", f"data.root={statements}", "backbone.max_text_length=4"]
    assert train.main([*own, *SHORT, "run_dir=run"]) == 0
    log = (elsewhere / "run" / "train.log").read_text()
    for split, count in (("train", 16), ("test", 8)):
        assert log.count(f"split {split}: texts of more than 4 tokens are truncated (backbone.max_text_length)") == 1
        assert f"{count} of {split}" in log[log.index("truncated texts, counted") :]


def test_train__from_the_adapter_of_a_retrieval_run(
    elsewhere: Path, statements: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What fits is used, what is new is named; an evaluation has nothing to train the new head with."""
    write_scenes(elsewhere / "scenes", domain="target", seed=3, train=16, val=4, test=4)
    retrieval = ["data=scenes", f"data.root={elsewhere / 'scenes'}", "adapter=modex", "run_dir=retrieval"]
    assert train.main([*retrieval, *SHORT]) == 0
    adapter = elsewhere / "retrieval" / "adapter.safetensors"
    own = ["task=reasoning", "data=scenes_nlvr2", f"data.root={statements}", "adapter=modex"]
    own += [f"adapter.checkpoint={adapter}"]
    assert train.main([*own, *SHORT, "optim.lr=1e-12", "optim.min_lr=0", "run_dir=run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"warning: {adapter}: of task=retrieval," in shown
    assert "not needed: heads." in shown
    assert "new here: " in shown
    with safe_open(adapter, "pt") as before, safe_open(elsewhere / "run" / "adapter.safetensors", "pt") as after:
        shared = [name for name in before.keys() if name.startswith("adapter.")]  # noqa: SIM118 (no dict)
        assert len(shared) > 10
        for name in shared:
            assert torch.allclose(before.get_tensor(name), after.get_tensor(name), atol=1e-9), name
        assert {"heads.norm1.weight", "heads.dense2.bias"} <= set(after.keys())

    assert evaluate.main([*own, "run_dir=evaluation"]) == 2
    assert "was trained for task=retrieval, not for task=reasoning" in capsys.readouterr().err
    assert train.main([*own, *SHORT, "adapter.mid_dim=8", "run_dir=other"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"adapter.mid_dim=8: {adapter} was trained with 16; leave the key out" in error
    assert not (elsewhere / "evaluation").exists()
    assert not (elsewhere / "other").exists()


def test_train__retrieval_file_of_blip_for_two_images(
    elsewhere: Path, statements: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = official_state(
        "blip", pair=False, width=16, text_width=16, depth=1, layers=2, vocabulary=962, patch=20, grid=3, positions=66,
        embedding=8,
    )  # fmt: skip
    torch.save({"model": state}, elsewhere / "model_base_retrieval_coco.pth")
    sizes = (
        "vision_width=16 vision_depth=1 vision_ffn_width=64 text_width=16 text_ffn_width=64 text_layers=2 merge_from=1"
    )
    own = ["backbone=blip_tiny", "backbone.checkpoint=model_base_retrieval_coco.pth", "backbone.pair=true"]
    own += [*(f"backbone.{size}" for size in sizes.split()), "task=reasoning", "data=scenes_nlvr2"]
    assert train.main([*own, f"data.root={statements}", *SHORT, "run_dir=run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "not needed: " in shown
    assert "not in the file, freshly drawn: " in shown
    assert "heads.hidden.weight" in shown


def test_train__one_image_form_for_two_images(
    elsewhere: Path, statements: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["backbone=blip_tiny", "backbone.checkpoint=random", "task=reasoning", "data=scenes_nlvr2"]
    assert train.main([*own, f"data.root={statements}", *SHORT, "run_dir=run"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "blip_tiny sees 1 image at a time, a statement here has 2: set backbone.pair=true" in error
    assert not (elsewhere / "run").exists()
