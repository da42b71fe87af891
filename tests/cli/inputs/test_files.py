"""Weights, tokenizers and adapters that do not fit: one line, exit code 2, nothing on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

import mwa_lightning
from mwa_lightning.cli import evaluate, train
from mwa_lightning.data.scenes.writing import write_scenes

SHIPPED = Path(mwa_lightning.__file__).parent / "assets" / "beit3_tiny.safetensors"


class Code:
    """What a file that runs code when it is read carries."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return shutil.rmtree, ("everything",)


def narrower(path: Path) -> None:
    halves = {
        name: tensor[..., : tensor.shape[-1] // 2] if tensor.ndim else tensor for name, tensor in shipped().items()
    }
    save_file({name: tensor.contiguous() for name, tensor in halves.items()}, path)


def another_model(path: Path) -> None:
    torch.save({"model": {"visual.conv1.weight": torch.zeros(3)}}, path)


def one_tensor_less(path: Path) -> None:
    state = shipped()
    del state["beit3.encoder.layers.2.ffn.A.fc1.weight"]
    save_file(state, path)


def one_tensor_more(path: Path) -> None:
    save_file(shipped() | {"beit3.strange": torch.zeros(2)}, path)


def cut_short(path: Path) -> None:
    path.write_bytes(SHIPPED.read_bytes()[:100_000])


def empty(path: Path) -> None:
    path.touch()


def no_checkpoint(path: Path) -> None:
    path.write_text("an error page of some server")


def code(path: Path) -> None:
    torch.save({"model": shipped(), "optimizer": Code()}, path)


def smaller_vocabulary(path: Path) -> None:
    lines = iter(["a b c d e f g"] * 20)
    prefix = str(path.with_suffix(""))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_prefix=prefix, vocab_size=16, hard_vocab_limit=False, minloglevel=2
    )
    path.with_suffix(".model").rename(path)


def shipped() -> dict[str, torch.Tensor]:
    return load_file(SHIPPED)


MISFITS: list[tuple[str, str, Callable[[Path], None], str]] = [
    ("backbone.checkpoint", "w.safetensors", narrower, "has width 64"),
    ("backbone.checkpoint", "w.pth", another_model, "not a BEiT-3 checkpoint"),
    ("backbone.checkpoint", "w.safetensors", one_tensor_less, "layers.2.ffn.A.fc1.weight"),
    ("backbone.checkpoint", "w.safetensors", one_tensor_more, "beit3.strange"),
    ("backbone.checkpoint", "w.safetensors", cut_short, "not a whole safetensors file"),
    ("backbone.checkpoint", "w.pth", empty, "an empty file"),
    ("backbone.checkpoint", "w.pth", no_checkpoint, "a text that begins with"),
    ("backbone.checkpoint", "w.pth", code, "refused, it asks for shutil.rmtree"),
    ("backbone.tokenizer", "t.spm", smaller_vocabulary, "the backbone has 962"),
    ("backbone.tokenizer", "t.spm", empty, "t.spm"),
    ("backbone.tokenizer", "t.spm", no_checkpoint, "t.spm"),
    ("adapter.checkpoint", "a.safetensors", cut_short, "the weights of a whole model (BEiT-3)"),
    ("adapter.checkpoint", "a.safetensors", one_tensor_more, "the weights of a whole model (BEiT-3)"),
    ("adapter.checkpoint", "a.pth", another_model, "the weights of a whole model (CLIP or SigLIP of OpenCLIP)"),
    ("adapter.checkpoint", "a.pth", code, "refused, it asks for shutil.rmtree"),
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(root, domain="target", seed=3, train=4, val=2, test=2)
    return root


@pytest.mark.parametrize(
    ("key", "name", "make", "says"), MISFITS, ids=[f"{key}-{make.__name__}" for key, _, make, _ in MISFITS]
)
def test_main__file_that_does_not_fit(
    key: str,
    name: str,
    make: Callable[[Path], None],
    says: str,
    scenes: Path,
    elsewhere: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path / name)
    arguments = [f"data.root={scenes}", f"{key}={tmp_path / name}"]
    for command, main in (("mwa-train", train.main), ("mwa-eval", evaluate.main)):
        zero_shot = ["adapter=none"] if main is evaluate.main and not key.startswith("adapter") else []
        assert main([*arguments, *zero_shot]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"{command}: error: ")
        assert error.count("\n") == 1
        assert says in error
    assert list(elsewhere.iterdir()) == []


def test_eval__weights_without_heads_are_warned_of(
    scenes: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(
        {name: tensor for name, tensor in shipped().items() if name.startswith("beit3.")}, "pretrained.safetensors"
    )
    arguments = [f"data.root={scenes}", "adapter=none", "run_dir=run"]
    assert evaluate.main([*arguments, "backbone.checkpoint=pretrained.safetensors"]) == 0
    assert "warning: " in (shown := capsys.readouterr().out)
    assert "has no heads for retrieval" in shown
    assert evaluate.main([*arguments, "run_dir=other"]) == 0
    assert "has no heads" not in capsys.readouterr().out


@pytest.mark.parametrize("key", ["backbone.checkpoint", "backbone.tokenizer"])
def test_main__name_that_is_too_long(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["adapter=none", "data=scenes", f"{key}={'x' * 300}"]) == 2
    assert f"{'x' * 300}: there is no such file" in capsys.readouterr().err
