"""The watch on each loss: small whole runs that learn, that collapse, that diverge and in which nothing moves."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mwa_lightning.cli.config.composing import apply, compose_groups, read_request
from mwa_lightning.cli.config.schema import check_values
from mwa_lightning.data.scenes.writing import write_scenes_nlvr2
from mwa_lightning.errors import NotLearning
from mwa_lightning.tasks import reasoning, retrieval
from mwa_lightning.training.fit import fit
from mwa_lightning.training.watching.watch import LearningWatch

Make = Callable[..., DictConfig]

SIZES = {
    "siglip2_tiny": "vision_width=32 vision_ffn_width=64 vision_depth=2 text_width=24 text_ffn_width=48 text_depth=1 "
    "embedding_width=32",
    "blip_tiny": "vision_width=32 vision_ffn_width=64 vision_depth=2 embedding_width=16 "
    "text_width=24 text_ffn_width=48 text_layers=2",
}
SIZES["albef_tiny"] = SIZES["blip_tiny"]
QUEUE = ("task.queue_size=20", "task.momentum=0.9")


@pytest.fixture
def make(data_root: Path, tmp_path: Path) -> Make:
    """Runs of very small backbones with random weights that train whole, three steps of 8 captions an epoch."""

    def config(backbone: str, *arguments: str) -> DictConfig:
        words = [
            f"backbone={backbone}", "backbone.checkpoint=random", *(f"backbone.{s}" for s in SIZES[backbone].split()),
            "adapter=full", "data=karpathy", f"data.root={data_root}", "data.batch_size=8", "data.eval_batch_size=5",
            "data.num_workers=0", "data.exif=false", "optim.warmup_epochs=0", "optim.logit_scale_factor=1",
            "task.rerank=0", "trainer.max_epochs=10", "trainer.check_val_every_n_epoch=10",
            f"run_dir={tmp_path / 'run'}", *arguments,
        ]  # fmt: skip
        request = read_request(words, config_name="train")
        composed = compose_groups("train", request.choices)
        apply(composed, request)
        check_values(composed)
        return composed

    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "options", "parts"),
    [
        ("siglip2_tiny", (), {"contrast": 2.98}),
        ("blip_tiny", (), {"contrast": 2.05, "matching": 0.6365}),
        ("albef_tiny", QUEUE, {"contrast": 3.33, "matching": 0.6365}),
    ],
    ids=["sigmoid", "matching", "queue"],
)
def test_watch__run_that_learns(
    backbone: str, options: tuple[str, ...], parts: dict[str, float], make: Make, watches: list[LearningWatch]
) -> None:
    """A queue of 20 adds as many candidates to the 8 of a batch: ln 28; two of three pairs of matching are wrong."""
    figures = fit(make(backbone, *options, "optim.lr=3e-3", "trainer.max_epochs=25"))
    assert not any(name.endswith("_at_step") for name in figures)
    steps = watches[0]._steps
    first, last = steps[0], steps[-1]
    # The fitted start begins where it costs to know nothing.
    for part, nothing in first.knowing_nothing.items():
        assert first.losses[part] == pytest.approx(nothing, abs=0.1)
    assert last.knowing_nothing == pytest.approx(parts, abs=0.06)
    assert last.losses["contrast"] < 0.97 * last.knowing_nothing["contrast"]
    assert figures["train/spread"] > 0.5


@pytest.mark.parametrize(
    ("backbone", "options", "said", "advice"),
    [
        (
            "siglip2_tiny",
            ("adapter=mwa", "adapter.mid_dim=4", "adapter.enhancer_dim=4", "optim.lr=1", "task.logit_scale=pretrained"),
            r"the embeddings have collapsed: all (images|texts) look the same to the model since about step \d",
            "set task.logit_scale=fitted or optim.lr=0.3 or optim.warmup_epochs=0.5",
        ),
        (
            "albef_tiny",
            (*QUEUE, "optim.lr=0.3"),
            r"the embeddings have collapsed: all (images|texts) look the same to the model since about step \d",
            "set optim.lr=0.1 or optim.warmup_epochs=0.5",
        ),
        (
            "siglip2_tiny",
            ("optim.lr=30",),
            "the run diverges: loss ",
            "set optim.lr=1e+01 or optim.warmup_epochs=0.5 or trainer.gradient_clip_val=1",
        ),
        (  # of matching alone: that of the contrast stays at that of knowing nothing
            "blip_tiny",
            ("optim.lr=10", "optim.min_lr=10"),
            "the run diverges: loss ",
            "that of knowing nothing is 0.64; set optim.lr=3 or optim.warmup_epochs=0.5 or trainer.gradient_clip_val=1",
        ),
    ],
    ids=["sigmoid_collapses", "queue_collapses", "sigmoid_diverges", "matching_diverges"],
)
def test_watch__run_that_does_not_learn(
    backbone: str, options: tuple[str, ...], said: str, advice: str, make: Make
) -> None:
    with pytest.raises(NotLearning) as caught:
        fit(make(backbone, *options, "training.collapsed=stop"))
    assert re.match(said, str(caught.value))  # which of the two falls first depends on how the CPU rounds
    assert str(caught.value).endswith(advice)


class Waits(TorchDispatchMode):
    """Notes what has the host wait for the device, or would if it were a GPU."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"):
            self.found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """The same, of what does not come to the operators where a tensor is on the CPU already."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__"):
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


SIGNS = {
    retrieval: ("knowing_nothing_of_contrast", "knowing_nothing_of_matching", "variance"),
    reasoning: ("knowing_nothing_of_classes", "variance_of_logits"),
    LearningWatch: ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end"),
}


@pytest.mark.parametrize("of", ["siglip2_tiny", "blip_tiny", "statements"])
def test_watch__waits_for_the_device_where_it_judges_alone(
    of: str, make: Make, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve steps an epoch: what a step adds asks for no number; the end of an epoch does, once."""
    found: list[tuple[int, str]] = []
    now, used = [-1], set()

    def listening(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            used.add(name)
            if name == "on_train_batch_start":
                now[0] = arguments[1].global_step
            waits: list[str] = []
            with Waits(waits), Reads(waits):
                result = original(*arguments, **options)
            found.extend((now[0], what) for what in waits)
            return result

        return wrapped

    for place, names in SIGNS.items():
        for name in names:
            monkeypatch.setattr(place, name, listening(name, getattr(place, name)))
    if of == "statements":
        root = tmp_path / "statements"
        write_scenes_nlvr2(root, domain="target", seed=3, train=24, dev=8, test=8)
        config = make_config("task=reasoning", "data=scenes_nlvr2", f"data.root={root}", "data.batch_size=2")
    else:
        config = make(of, "data.batch_size=2", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=2")
    fit(config)
    of_task = SIGNS[reasoning if of == "statements" else retrieval]
    assert used >= {*SIGNS[LearningWatch], *of_task} - ({"knowing_nothing_of_matching"} if "siglip" in of else set())
    assert found == [(11, "tolist"), (23, "tolist")]
