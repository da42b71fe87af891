"""What does one training step cost? Adapter methods against full fine-tuning, interleaved in one run.

    python scripts/benchmark/step.py --backbone beit3_base --batch 8 --precision fp32 --methods full,mwa,mwa_half

Each round times one step (forward of images and texts, contrastive loss, backward, AdamW) of every method in turn, so
that a drift of the machine's speed falls on all alike; medians and ratios to the first method are printed. Weights and
data are random: the cost does not depend on them. `mwa_half` is MultiWay-Adapter from the middle layer up. Peak memory
is measured in a process of its own for each method: of the device's allocator on a GPU; on a CPU of the whole process
(resident, with Python and PyTorch, some 0.4 GB).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import torch
from omegaconf import DictConfig

from mwa_lightning.adapters.base import AdapterMethod
from mwa_lightning.adapters.full import FullFineTuning
from mwa_lightning.adapters.head_only import HeadOnly
from mwa_lightning.adapters.mwa import MultiWayAdapter
from mwa_lightning.cli.config.composing import compose_groups
from mwa_lightning.tasks.heads import EmbeddingHeads
from mwa_lightning.tasks.losses.functions import contrastive_loss
from mwa_lightning.tasks.model import RetrievalModel
from mwa_lightning.training.assembly.build import build_backbone

METHODS: dict[str, Callable[[int], AdapterMethod]] = {
    "full": lambda depth: FullFineTuning(),
    "mwa": lambda depth: MultiWayAdapter(),
    "mwa_half": lambda depth: MultiWayAdapter(first_layer=depth // 2),
    "head_only": lambda depth: HeadOnly(),
}


class Row(TypedDict):
    """The figures of one method."""

    method: str
    step_s: float
    ratio: float
    peak_bytes: int
    trainable: int


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="beit3_base", help="a name of configs/backbone")
    parser.add_argument("--batch", type=int, default=8, help="pairs in a step")
    parser.add_argument("--text-length", type=int, default=24, help="tokens of a caption")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: mixed, trainables fp32")
    parser.add_argument("--methods", default="full,mwa,mwa_half", help=f"comma-separated, of {', '.join(METHODS)}")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one that is not counted")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.methods.split(",") if name not in METHODS]
    if unknown:
        parser.error(f"--methods: no method {unknown[0]}; choose from {', '.join(METHODS)}")
    if min(arguments.batch, arguments.rounds) < 1 or arguments.batch < 2:
        parser.error("--batch must be at least 2 and --rounds at least 1")
    return arguments


def make_step(method: str, config: DictConfig, arguments: argparse.Namespace) -> tuple[Callable[[], None], int]:
    """A function that does one training step of a method, and the number of parameters it trains."""
    device = torch.device(arguments.device)
    backbone, heads = build_backbone(config)
    assert isinstance(heads, EmbeddingHeads)
    model = RetrievalModel(backbone=backbone, heads=heads, adapter=METHODS[method](len(backbone.layers("vision"))))
    model.to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    size = backbone.image_size
    images = torch.randint(0, 256, (arguments.batch, 3, size, size), dtype=torch.uint8, device=device)
    ids = torch.randint(4, backbone.vocabulary_size, (arguments.batch, arguments.text_length), device=device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    image_ids = torch.arange(arguments.batch, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bf16"):
            pictures, texts = model.encode_image(images), model.encode_text(ids, mask)
        scale = model.heads.logit_scale
        loss = contrastive_loss(pictures, texts, logit_scale=scale, image_ids=image_ids, mask_same_image=False)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step, sum(parameter.numel() for parameter in trained)


def peak_bytes(device: str) -> int:
    """The most memory that this process has used so far."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(arguments: argparse.Namespace, config: DictConfig) -> list[Row]:
    """Time all methods in turn, then measure the memory of each in a process of its own."""
    names = arguments.methods.split(",")
    peaks = {
        name: int(
            subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--peak-of", name],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for name in names
    }
    steps = {name: make_step(name, config, arguments) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(arguments.rounds + 1):
        for name, (step, _) in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return [
        Row(
            method=name,
            step_s=medians[name],
            ratio=statistics.median(a / b for a, b in zip(seconds[name][1:], seconds[names[0]][1:], strict=True)),
            peak_bytes=peaks[name],
            trainable=steps[name][1],
        )
        for name in names
    ]


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    arguments = parse(argv)
    config = compose_groups("train", {"backbone": arguments.backbone})
    config.backbone.checkpoint = "random"
    if arguments.peak_of:
        step, _ = make_step(arguments.peak_of, config, arguments)
        step()
        step()
        print(peak_bytes(arguments.device))
        return
    rows = measure(arguments, config)
    facts = {
        "backbone": arguments.backbone,
        "image_size": int(config.backbone.image_size),
        "batch": arguments.batch,
        "text_length": arguments.text_length,
        "precision": arguments.precision,
        "rounds": arguments.rounds,
        "device": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(f"{'method':<10} {'s/step':>8} {'ratio':>6} {'peak GB':>8} {'memory':>7} {'trainable':>12}")
    for row in rows:
        print(
            f"{row['method']:<10} {row['step_s']:>8.3f} {row['ratio']:>6.2f} {row['peak_bytes'] / 1e9:>8.2f} "
            f"{row['peak_bytes'] / rows[0]['peak_bytes']:>7.2f} {row['trainable']:>12,}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
