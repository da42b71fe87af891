"""Is effectiveness kept? MultiWay-Adapter, full fine-tuning and the heads alone on the target domain of the scenes.

    python scripts/benchmark/scenes.py --jobs 2 --folder logs/benchmark_scenes

Every method gets the same learning rates; the best is chosen by mean recall on the validation split with the first
seed, then run with the other seeds. Each run is a process of its own (`mwa-train experiment=scenes_<method>`), with the
processor's threads divided among the jobs; a run that has its metrics.json is not repeated. The table is of the test
split: mean over the seeds, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

METHODS = ("full", "mwa", "head_only")
RATES = ("1e-3", "2e-3", "5e-3")


@dataclass(frozen=True)
class Run:
    """One training run: a method, a learning rate, a seed."""

    method: str
    rate: str
    seed: int

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.method}_{self.rate}_{self.seed}"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("logs/benchmark_scenes"), help="where the runs are left")
    parser.add_argument("--methods", default=",".join(METHODS), help="names of configs/experiment/scenes_*.yaml")
    parser.add_argument("--rates", default=",".join(RATES), help="learning rates that every method is tuned over")
    parser.add_argument("--seeds", default="42,43,44", help="the first is the one that the rate is chosen with")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    return parser.parse_args()


def metrics(run: Run, folder: Path) -> dict[str, float]:
    """The figures of a run that is through."""
    figures: dict[str, float] = json.loads((folder / run.name / "metrics.json").read_text())
    return figures


def carry_out(runs: Sequence[Run], folder: Path, jobs: int) -> None:
    """Train what has not been trained yet. Raises RuntimeError with the end of the output of a run that fails."""
    threads = max(1, (os.cpu_count() or 1) // jobs)

    def train(run: Run) -> None:
        path = folder / run.name
        if (path / "metrics.json").is_file() and "test/mean_recall" in metrics(run, folder):
            return
        command = [str(Path(sys.executable).with_name("mwa-train")), f"experiment=scenes_{run.method}"]
        command += [f"optim.lr={run.rate}", f"seed={run.seed}", f"run_dir={path}"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"{run.name}: {done.stderr[-800:]}")
        figures = metrics(run, folder)
        print(
            f"{run.name}: val {figures['val/mean_recall']:.1f}, test {figures['test/mean_recall']:.1f}, "
            f"{figures['time/fit_s']:.0f} s",
            flush=True,
        )

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(train, runs))


def main() -> None:
    """Tune, repeat, print the table."""
    arguments = parse()
    methods, rates = arguments.methods.split(","), arguments.rates.split(",")
    first, *others = (int(seed) for seed in arguments.seeds.split(","))
    folder: Path = arguments.folder.resolve()
    carry_out([Run(method, rate, first) for rate in rates for method in methods], folder, arguments.jobs)
    best = {
        method: max(rates, key=lambda rate: metrics(Run(method, rate, first), folder)["val/mean_recall"])
        for method in methods
    }
    chosen = {method: [Run(method, best[method], seed) for seed in (first, *others)] for method in methods}
    carry_out([run for runs in chosen.values() for run in runs], folder, arguments.jobs)

    print("\n| method | learning rate | trained | of all | image to text R@1/5/10 | text to image | mean recall |")
    print("|---|---|---|---|---|---|---|")
    zero_shot = metrics(chosen[methods[0]][0], folder)

    def row(figures: Sequence[dict[str, float]], prefix: str) -> str:
        def mean(name: str) -> float:
            return statistics.mean(each[f"{prefix}/{name}"] for each in figures)

        recalls = [each[f"{prefix}/mean_recall"] for each in figures]
        spread = f" ({min(recalls):.1f} to {max(recalls):.1f})" if len(recalls) > 1 else ""
        both = [" / ".join(f"{mean(f'{way}_r{k}'):.1f}" for k in (1, 5, 10)) for way in ("i2t", "t2i")]
        return f"{both[0]} | {both[1]} | {mean('mean_recall'):.1f}{spread} |"

    print(f"| zero-shot | – | 0 | 0 % | {row([zero_shot], 'zero_shot')}")
    for method, runs in chosen.items():
        figures = [metrics(run, folder) for run in runs]
        trained, total = figures[0]["params/trainable"], figures[0]["params/total"]
        print(
            f"| {method} | {best[method]} | {int(trained):,} | {100 * trained / total:.1f} % | {row(figures, 'test')}"
        )


if __name__ == "__main__":
    main()
