"""The commands on the built-in data set with the shipped backbone: a few steps on a few pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from mwa_lightning.cli import evaluate, prepare, train
from mwa_lightning.data import built_in
from mwa_lightning.data.scenes.writing import write_scenes

SHORT = ("trainer.max_steps=3", "optim.warmup_epochs=0", "data.batch_size=16", "callbacks.progress_bar=false")
FILES = {
    "adapter.safetensors",
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
    "config.yaml",
    "metrics.csv",
    "metrics.json",
    "provenance.json",
    "predictions.safetensors",
    "train.log",
}
FIGURES = {f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)} | {"mean_recall"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(root, domain="target", seed=3, train=40, val=8, test=16)
    return root


@pytest.fixture(scope="module")
def run_directory(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert train.main([f"run_dir={directory}", f"data.root={scenes}", "save_predictions=true", *SHORT]) == 0
    return directory


def figures(directory: Path, prefix: str) -> dict[str, float]:
    metrics = json.loads((directory / "metrics.json").read_text())
    return {name.removeprefix(f"{prefix}/"): metrics[name] for name in metrics if name.startswith(f"{prefix}/")}


def test_train__leaves_a_complete_run(run_directory: Path) -> None:
    left = {path.relative_to(run_directory).as_posix() for path in run_directory.rglob("*") if path.is_file()}
    assert left >= FILES
    metrics = json.loads((run_directory / "metrics.json").read_text())
    wanted = {f"{part}/{name}" for part in ("test", "zero_shot") for name in FIGURES}
    wanted |= {"params/trainable", "params/total", "params/adapter_share", "time/fit_s", "time/step_s"}
    assert wanted <= metrics.keys()
    assert all(0 <= metrics[f"test/{name}"] <= 100 for name in FIGURES)
    assert 0 < metrics["params/trainable"] < metrics["params/total"]
    config = yaml.safe_load((run_directory / "config.yaml").read_text())
    assert (config["name"], config["trainer"]["max_steps"]) == ("scenes_mwa", 3)
    with safe_open(run_directory / "predictions.safetensors", framework="numpy") as file:
        assert file.get_slice("image_embeddings").get_shape()[0] == 16
        assert file.get_slice("text_embeddings").get_shape()[0] == 80


def test_eval__of_the_run_gives_its_figures(run_directory: Path, elsewhere: Path) -> None:
    assert evaluate.main([f"run={run_directory}", "run_dir=again"]) == 0
    assert figures(elsewhere / "again", "test") == figures(run_directory, "test")
    assert (elsewhere / "again" / "predictions.safetensors").is_file()


def test_eval__without_the_adapter_is_zero_shot(run_directory: Path, scenes: Path, elsewhere: Path) -> None:
    assert evaluate.main([f"run={run_directory}", "adapter=none", "run_dir=a", "save_predictions=false"]) == 0
    assert evaluate.main(["adapter=none", f"data.root={scenes}", "run_dir=b"]) == 0
    assert figures(elsewhere / "a", "test") == figures(run_directory, "zero_shot")
    assert figures(elsewhere / "b", "test") == figures(run_directory, "zero_shot")
    assert not (elsewhere / "a" / "predictions.safetensors").exists()


def test_eval__default_directory_is_under_logs(run_directory: Path, elsewhere: Path) -> None:
    before = (run_directory / "metrics.json").read_bytes()
    assert evaluate.main([f"run={run_directory}", "split=val"]) == 0
    (left,) = elsewhere.glob("logs/*/*/*/metrics.json")
    assert figures(left.parent, "val").keys() >= FIGURES
    assert (run_directory / "metrics.json").read_bytes() == before


def test_eval__missed_expectation(run_directory: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([f"run={run_directory}", "expect=beit3_base_coco", "run_dir=run"]) == 3
    captured = capsys.readouterr()
    assert "79.10" in captured.out
    assert captured.err.startswith("mwa-eval: error: expect=beit3_base_coco")
    differing = "model, weights, data, split, resolution and protocol"
    assert f"warning: expect=beit3_base_coco: ours is not of the same {differing}" in captured.out
    assert captured.err.endswith(f"; not of the same {differing}\n")
    assert (elsewhere / "run" / "metrics.json").is_file()


def test_eval__refuses_to_write_over_a_training_run(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run_directory / "metrics.json").read_bytes()
    assert evaluate.main([f"run={run_directory}", f"run_dir={run_directory}"]) == 2
    assert "holds a training run" in capsys.readouterr().err
    assert (run_directory / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("method", ["full", "head_only"])
def test_train__other_methods(method: str, scenes: Path, elsewhere: Path) -> None:
    assert train.main([f"experiment=scenes_{method}", f"data.root={scenes}", *SHORT]) == 0
    (left,) = elsewhere.glob(f"logs/retrieval/scenes_{method}/*/metrics.json")
    assert figures(left.parent, "test").keys() >= FIGURES


def empty_picture(root: Path) -> None:
    (root / "train" / "scene_train_000003.jpg").write_bytes(b"")


def broken_picture(root: Path) -> None:
    picture = root / "test" / "scene_test_000002.jpg"
    picture.write_bytes(picture.read_bytes()[:200])


def missing_picture(root: Path) -> None:
    (root / "val" / "scene_val_000001.jpg").unlink()


def broken_json(root: Path) -> None:
    (root / "dataset_scenes.json").write_text('{"images": [')


def missing_json(root: Path) -> None:
    (root / "dataset_scenes.json").unlink()


def one_caption(root: Path) -> None:
    def cut(images: list[dict]) -> list[dict]:
        first = next(image for image in images if image["split"] == "train")
        return [first | {"sentences": first["sentences"][:1]}] + [i for i in images if i["split"] != "train"]

    change(root, cut)


def empty_json(root: Path) -> None:
    (root / "dataset_scenes.json").write_text("")


def empty_split(root: Path) -> None:
    change(root, lambda images: [image for image in images if image["split"] != "val"])


def caption_without_words(root: Path) -> None:
    def blank(images: list[dict]) -> list[dict]:
        images[5]["sentences"][2]["raw"] = "  "
        return images

    change(root, blank)


def change(root: Path, how: Callable[[list[dict]], list[dict]]) -> None:
    file = root / "dataset_scenes.json"
    content = json.loads(file.read_text())
    content["images"] = how(content["images"])
    file.write_text(json.dumps(content))


DAMAGES: dict[Callable[[Path], None], str] = {
    empty_picture: "scene_train_000003.jpg",
    broken_picture: "scene_test_000002.jpg",
    missing_picture: "scene_val_000001.jpg",
    missing_json: "dataset_scenes.json",
    one_caption: "a training split of 1 caption gives global batches of one",
    broken_json: "dataset_scenes.json",
    empty_json: "dataset_scenes.json",
    empty_split: "val",
    caption_without_words: "dataset_scenes.json",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_train__damaged_data(
    damage: Callable[[Path], None], scenes: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = elsewhere / "scenes"
    shutil.copytree(scenes, root)
    damage(root)
    own = ["data=karpathy", f"data.root={root}", "data.annotations=dataset_scenes.json", "data.num_workers=0"]
    assert train.main([*own, *SHORT, "run_dir=run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mwa-train: error: ")
    assert error.count("\n") == 1
    assert DAMAGES[damage] in error
    assert not (elsewhere / "run").exists()


def test_prepare__reports_all_problems_at_once(
    scenes: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = elsewhere / "scenes"
    shutil.copytree(scenes, root)
    picture_damages = (empty_picture, broken_picture, missing_picture, caption_without_words)
    for damage in picture_damages:
        damage(root)
    own = ["data=karpathy", f"data.root={root}", "data.annotations=dataset_scenes.json", "data.num_workers=0"]
    assert prepare.main([*own, "check=true"]) == 2
    captured = capsys.readouterr()
    for damage in picture_damages:
        assert DAMAGES[damage] in captured.out
    assert "4 problems" in captured.out
    assert captured.err.count("\n") == 1


def test_prepare__sound_data(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["data=karpathy", f"data.root={scenes}", "data.annotations=dataset_scenes.json", "data.num_workers=0"]
    assert prepare.main([*own, "check=true"]) == 0
    text = capsys.readouterr().out
    assert "train: 40 images, 200 captions" in text
    assert "no problems" in text


def test_prepare__makes_the_statements_about_scenes(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(built_in, "SCENES_NLVR2", {"seed": 0, "train": 8, "dev": 4, "test": 4})
    assert prepare.main(["data=scenes_nlvr2", "data.root=made", "check=true"]) == 0
    text = capsys.readouterr().out
    assert f"data=scenes_nlvr2, source domain: {elsewhere / 'made'}" in text
    assert "test: 4 images, 4 statements (False 2, True 2)" in text
    (elsewhere / "made" / "images" / "dev" / "dev-0-1-img1.png").unlink()
    (elsewhere / "made" / "nlvr" / "nlvr2" / "data" / "test1.json").write_text("{}\n{}\n")
    assert prepare.main(["data=nlvr2", "data.root=made", "data.num_workers=0", "check=true"]) == 2
    captured = capsys.readouterr()
    for part in (
        "dev-0-1-img1.png is missing",
        "line 1 lacks an identifier",
        "no test split: split=val evaluates another",
        "3 problems",
    ):
        assert part in captured.out
    assert captured.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_prepare__makes_the_scenes(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["data=scenes", "data.root=made", "check=true"]) == 0
    assert str(elsewhere / "made") in capsys.readouterr().out
    images = json.loads((elsewhere / "made" / "dataset_scenes.json").read_text())["images"]
    assert sum(image["split"] == "test" for image in images) >= 500
