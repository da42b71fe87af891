"""Retrieval runs of BLIP and ALBEF: re-ranked figures, the momentum queue, continuation to the byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file

from mwa_lightning.cli.config.composing import apply, compose_groups, read_request
from mwa_lightning.cli.config.schema import check_values
from mwa_lightning.metrics.recall import Embedded
from mwa_lightning.metrics.reranking import Candidates, Ranking, reranked_figures
from mwa_lightning.training.assembly.build import build_tokenizer
from mwa_lightning.training.callbacks.run_keeper import RunKeeper
from mwa_lightning.training.evaluate import evaluate
from mwa_lightning.training.fit import fit

SIZES = "vision_width=32 vision_ffn_width=64 vision_depth=2 embedding_width=16 "
SIZES += "text_width=24 text_ffn_width=48 text_layers=2"
QUEUE = ("task.queue_size=20", "task.momentum=0.9", "task.rerank=3", "training.checkpoint_every_n_steps=2")
RECALLS = {f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)} | {"mean_recall"}


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture
def make(data_root: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """Configurations of a very small BLIP or ALBEF: three steps an epoch, two epochs."""

    def config(backbone: str, *arguments: str, run: str = "run", command: str = "train") -> DictConfig:
        words = [
            f"backbone={backbone}", "backbone.checkpoint=random", *(f"backbone.{size}" for size in SIZES.split()),
            "adapter.mid_dim=4", *(["adapter.enhancer_dim=4"] if "adapter=modex" not in arguments else []),
            "data=karpathy", f"data.root={data_root}",
            "data.batch_size=8", "data.eval_batch_size=5", "data.num_workers=0", "data.exif=false", "optim.lr=1e-2",
            "trainer.max_epochs=2", "trainer.log_every_n_steps=1", f"run_dir={tmp_path / run}", *arguments,
        ]  # fmt: skip
        request = read_request(words, config_name=command)
        composed = compose_groups(command, request.choices)
        apply(composed, request)
        check_values(composed)
        return composed

    return config


def test_fit__killed_in_mid_epoch_with_a_queue_and_started_again(
    make: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes and figures as a run that nothing happened to: queue and slow copy are in the checkpoint."""
    options = (*QUEUE, "save_predictions=true")
    whole = fit(make("blip_tiny", *options, run="whole"))
    save = RunKeeper._save

    def dying(self: RunKeeper, trainer: object, **position: int) -> None:
        save(self, trainer, **position)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunKeeper, "_save", dying)
        with pytest.raises(Killed):
            fit(make("blip_tiny", *options, run="killed"))
    saved = torch.load(tmp_path / "killed" / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(saved["momentum_queue"]["images"]) == 16
    assert saved["momentum_queue"]["slow"].keys() == {name.removeprefix("model.") for name in saved["state_dict"]}
    again = fit(make("blip_tiny", *options, run="killed"))
    assert {name: value for name, value in again.items() if "time/" not in name} == {
        name: value for name, value in whole.items() if "time/" not in name
    }
    for file in ("adapter.safetensors", "predictions.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()

    for split in ("test", "val"):
        names = {name.removeprefix(f"{split}/") for name in whole if name.startswith(f"{split}/")}
        assert names == RECALLS | {f"cosine/{name}" for name in RECALLS}
    # The figures are those of the candidates in the predictions.
    left = load_file(tmp_path / "whole" / "predictions.safetensors")
    owner = torch.searchsorted(left["image_ids"].sort().values, left["text_image_ids"])
    ranking = Ranking(
        Candidates(left["image_candidates"], left["image_scores"]),
        Candidates(left["text_candidates"], left["text_scores"]),
    )
    embedded = Embedded(left["image_embeddings"], left["text_embeddings"], owner)
    figures = reranked_figures(ranking, embedded)
    assert {name: whole[f"test/{name}"] for name in RECALLS} == pytest.approx(figures)
    assert left["image_candidates"].shape == (6, 3)
    assert left["text_candidates"].shape == (12, 3)


def test_fit__queue_off_by_default_and_all_candidates_of_a_small_split(
    make: Callable[..., DictConfig], tmp_path: Path
) -> None:
    figures = fit(make("albef_tiny", "trainer.max_epochs=1"))
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert "momentum_queue" not in saved
    assert {"test/i2t_r1", "test/cosine/i2t_r1", "val/mean_recall"} <= figures.keys()
    adapter = f"adapter.checkpoint={tmp_path / 'run' / 'adapter.safetensors'}"
    again = evaluate(make("albef_tiny", adapter, command="evaluate", run="again"))
    assert all(again[f"test/{name}"] == figures[f"test/{name}"] for name in RECALLS)
    by_cosine = evaluate(make("albef_tiny", adapter, "task.rerank=0", command="evaluate", run="by_cosine"))
    assert {name: by_cosine[f"test/{name}"] for name in RECALLS} == {
        name: figures[f"test/cosine/{name}"] for name in RECALLS
    }
    assert "test/cosine/i2t_r1" not in by_cosine


@pytest.mark.parametrize("variant", ["standard", "released"])
def test_coordinator__each_row_leads_to_an_image_and_a_text(
    variant: str, make: Callable[..., DictConfig], tmp_path: Path, data_root: Path
) -> None:
    """With re-ranking: the pairs are those that were scored, each seen as often as the arrangement says."""
    options = ["adapter=modex", f"adapter.variant={variant}", "task.rerank=3", "trainer.max_steps=1"]
    config = make("albef_tiny", *options, "save_coordinator=true", "save_predictions=true")
    fit(config)
    saved, found = (load_file(tmp_path / "run" / f"{name}.safetensors") for name in ("coordinator", "predictions"))
    pairs = list(zip(saved["pairs.image"].tolist(), saved["pairs.text"].tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    wanted = {(image, int(text)) for image, row in enumerate(found["image_candidates"]) for text in row}
    wanted |= {(int(image), text) for text, row in enumerate(found["text_candidates"]) for image in row}
    captions = [
        tuple(ids) for ids in build_tokenizer(config).pieces(_captions(data_root, "test"))
    ]  # equal to the model
    assert {(image, captions[text]) for image, text in pairs} == {(image, captions[text]) for image, text in wanted}
    for name in {key.rpartition(".")[0] for key in saved} - {"pairs"}:
        assert set(saved[f"{name}.sample"].tolist()) == set(range(len(pairs)))
        runs = 2 if variant == "released" and name.startswith("cross_attn") else 1
        assert set(saved[f"{name}.run"].tolist()) == set(range(runs))
        places = zip(*(saved[f"{name}.{kind}"].tolist() for kind in ("sample", "position", "run")), strict=True)
        assert len(set(places)) == len(saved[f"{name}.weights"])


def _captions(root: Path, split: str) -> list[str]:
    images = json.loads((root / "dataset.json").read_text())["images"]
    return [sentence["raw"] for image in images if image["split"] == split for sentence in image["sentences"]]
