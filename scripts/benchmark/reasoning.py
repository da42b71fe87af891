"""Does ModeX learn to look? It, MultiWay-Adapter and baselines that see one side only, on statements about the scenes.

    python scripts/benchmark/reasoning.py --jobs 1 --folder logs/benchmark_reasoning

Each run is `mwa-train experiment=scenes_modex` in a process of its own, with the method, the learning rate or
`task.blind` changed; all have the same steps. `text only` sees grey pictures, `pictures only` a first token alone.
The learning rate of each method is the one that is best on validation with the first seed; the baselines take that of
ModeX. A run that has its metrics.json is not repeated. The table is of the test split, with each kind of claim.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from mwa_lightning.data.scenes.statements import SENTENCES, claim_of

METHODS = {
    "modex": (),
    "mwa": ("adapter=mwa", "adapter.scale=4.0", "adapter.dropout=0.0"),
    "head_only": ("adapter=head_only",),
    "full": ("adapter=full",),
}
BLIND = {"text only": "images", "pictures only": "text"}
RATES = ("1e-3", "3e-3", "1e-2")


@dataclass(frozen=True)
class Run:
    """One training run: a method, a learning rate, a seed, and what is hidden from it."""

    method: str
    rate: str
    seed: int
    blind: str = "null"

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.method}_{self.rate}_{self.seed}" + ("" if self.blind == "null" else f"_without_{self.blind}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("logs/benchmark_reasoning"), help="where the runs are left")
    parser.add_argument("--methods", default="modex,mwa,head_only", help=f"some of {', '.join(METHODS)}")
    parser.add_argument("--rates", default=",".join(RATES), help="learning rates that every method is tuned over")
    parser.add_argument("--seeds", default="42", help="the first is the one that the rate is chosen with")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("overrides", nargs="*", help="further key=value for every run, such as trainer.max_epochs=3")
    return parser.parse_args()


def metrics(run: Run, folder: Path) -> dict[str, float]:
    """The figures of a run that is through."""
    figures: dict[str, float] = json.loads((folder / run.name / "metrics.json").read_text())
    return figures


def carry_out(runs: Sequence[Run], arguments: argparse.Namespace) -> None:
    """Train what has not been trained yet. Raises RuntimeError with the end of the output of a run that fails."""
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)

    def train(run: Run) -> None:
        path = arguments.folder / run.name
        if not ((path / "metrics.json").is_file() and "test/accuracy" in metrics(run, arguments.folder)):
            settings = [*METHODS[run.method], f"optim.lr={run.rate}", f"seed={run.seed}", f"task.blind={run.blind}"]
            command = [sys.executable, "-c", "import sys; from mwa_lightning.cli.train import main; sys.exit(main())"]
            command += ["experiment=scenes_modex", *settings, "save_predictions=true", f"run_dir={path}"]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            done = subprocess.run([*command, *arguments.overrides], capture_output=True, text=True, env=environment)
            if done.returncode:
                raise RuntimeError(f"{run.name}: {done.stderr[-800:]}")
        figures = metrics(run, arguments.folder)
        print(
            f"{run.name}: val {figures['val/accuracy']:.1f}, test {figures['test/accuracy']:.1f}, "
            f"{figures['time/fit_s']:.0f} s",
            flush=True,
        )

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(train, runs))


def by_claim(run: Run, folder: Path, texts: dict[str, str]) -> dict[str, float]:
    """Percent right on the test split, for each kind of claim."""
    with safe_open(folder / run.name / "predictions.safetensors", framework="pt") as file:
        logits, labels = file.get_tensor("logits"), file.get_tensor("labels")
        identifiers = json.loads(file.metadata()["identifiers"])
    right = logits.argmax(dim=1) == labels
    claims = [claim_of(texts[identifier]) for identifier in identifiers]
    kinds = SENTENCES["source"].keys()
    chosen = {kind: torch.tensor([claim == kind for claim in claims]) for kind in kinds}
    return {kind: 100 * right[rows].float().mean().item() for kind, rows in chosen.items()}


def main() -> None:
    """Tune, repeat, print the tables."""
    from mwa_lightning.data.built_in import prepare_scenes, scenes_root

    arguments = parse()
    arguments.folder = arguments.folder.resolve()
    folder, methods, rates = arguments.folder, arguments.methods.split(","), arguments.rates.split(",")
    root = scenes_root(domain="source", layout="scenes_nlvr2")
    prepare_scenes(root, domain="source", layout="scenes_nlvr2")
    lines = (root / "nlvr" / "nlvr2" / "data" / "test1.json").read_text().splitlines()
    texts = {line["identifier"]: line["sentence"] for line in map(json.loads, lines)}

    first, *others = (int(seed) for seed in arguments.seeds.split(","))
    carry_out([Run(method, rate, first) for rate in rates for method in methods], arguments)
    best = {m: max(rates, key=lambda rate: metrics(Run(m, rate, first), folder)["val/accuracy"]) for m in methods}
    rows = {method: [Run(method, best[method], seed) for seed in (first, *others)] for method in methods}
    rows |= {label: [Run(methods[0], best[methods[0]], first, blind)] for label, blind in BLIND.items()}
    carry_out([run for runs in rows.values() for run in runs], arguments)

    kinds = list(SENTENCES["source"])
    print(f"\n| | learning rate | trained | accuracy | consistency | {' | '.join(kinds)} | seconds |")
    print("|---" * (len(kinds) + 6) + "|")
    for label, runs in rows.items():
        figures = [metrics(run, folder) for run in runs]

        def mean(name: str, figures: Sequence[dict[str, float]] = figures) -> float:
            return sum(each[name] for each in figures) / len(figures)

        claims = by_claim(runs[0], folder, texts)
        cells = [label, runs[0].rate, f"{int(mean('params/trainable')):,}", f"{mean('test/accuracy'):.1f}"]
        cells += [f"{mean('test/consistency'):.1f}", *(f"{claims[kind]:.0f}" for kind in kinds)]
        print(f"| {' | '.join(cells)} | {mean('time/fit_s'):.0f} |")
    print(f"| always the same answer | | 0 | {metrics(rows[methods[0]][0], folder)['test/majority']:.1f} | |")


if __name__ == "__main__":
    main()
