"""Do the defaults learn on data that nobody tuned them on? Every method on every data set, at all defaults.

    python scripts/datasets/tuxpaint_stamps.py --output sets/tuxpaint_stamps   # and the others of scripts/datasets/
    python scripts/benchmark/unseen.py sets/* --jobs 2 --folder logs/benchmark_unseen

A data set is a folder with a pairs.csv (retrieval: mean recall) or a train.jsonl (statements: accuracy), or one of the
built-in `scenes` and `scenes_nlvr2`. Each run is `mwa-train` in a process of its own, with nothing set but the method,
the data and the seed (`+tokens`: the vectors of the vocabulary train too, adapter.modules_to_save=[tokens]); one that
has its metrics.json is not repeated. Full fine-tuning is what they are held against: it
has the best of three learning rates, by validation with the first seed, on each data set. The table is of the test
split: mean over the seeds, with the lowest and the highest, and the share of what full fine-tuning gains over chance.
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

METHODS = ("head_only", "mwa", "modex", "mwa+tokens", "modex+tokens")
TOKENS = "adapter.modules_to_save=[tokens]"
FULL = "full"
RATES = ("3e-4", "1e-3", "3e-3")
METRICS = ("mean_recall", "accuracy")


@dataclass(frozen=True)
class Run:
    """One training run: a data set (a folder or a name), a method, a seed, and a learning rate or `auto`."""

    data: str
    method: str
    seed: int
    rate: str = "auto"

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{Path(self.data).name}_{self.method}_{self.rate}_{self.seed}"

    @property
    def overrides(self) -> list[str]:
        """What is given to mwa-train."""
        if self.data == "scenes_nlvr2":
            data = ["task=reasoning", "data=scenes_nlvr2"]
        elif self.data == "scenes":
            data = ["data=scenes"]
        elif (Path(self.data) / "pairs.csv").is_file():
            data = ["data=pairs", f"data.root={self.data}"]
        else:
            data = ["task=entailment", "data=statements", f"data.root={self.data}"]
        rate = [] if self.rate == "auto" else [f"optim.lr={self.rate}"]
        method, _, tokens = self.method.partition("+")
        return [f"adapter={method}", *([TOKENS] if tokens else []), f"seed={self.seed}", *data, *rate]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="folders of data sets, or scenes, scenes_nlvr2")
    parser.add_argument("--folder", type=Path, default=Path("logs/benchmark_unseen"), help="where the runs are left")
    parser.add_argument(
        "--methods", default=",".join(METHODS), help="configs/adapter/*.yaml, or one of these and +tokens"
    )
    parser.add_argument("--rates", default=",".join(RATES), help="learning rates that full fine-tuning is tuned over")
    parser.add_argument("--seeds", default="42,43,44", help="the first is the one that the rate is chosen with")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--set", action="append", default=[], help="a further key=value for every run", metavar="KEY=V")
    parser.add_argument("--table-only", action="store_true", help="print what is there, train nothing")
    return parser.parse_args()


def metrics(run: Run, folder: Path) -> dict[str, float] | None:
    """The metrics of a run that has finished."""
    path = folder / run.name / "metrics.json"
    found: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    return found if any(f"test/{metric}" in found for metric in METRICS) else None


def score(found: dict[str, float], split: str) -> float:
    """The metric of the task."""
    return next(found[f"{split}/{metric}"] for metric in METRICS if f"{split}/{metric}" in found)


def carry_out(runs: Sequence[Run], arguments: argparse.Namespace) -> None:
    """Train what has not been trained yet. Raises RuntimeError with the end of the output of a run that fails."""

    def train(run: Run) -> None:
        if metrics(run, arguments.folder) is None:
            command = [str(Path(sys.executable).with_name("mwa-train")), *run.overrides, *arguments.set]
            command += [f"run_dir={arguments.folder / run.name}", "callbacks.progress_bar=false"]
            environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // arguments.jobs)), **os.environ}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise RuntimeError(f"{run.name}: {done.stderr[-800:]}")
        found = metrics(run, arguments.folder)
        assert found is not None
        print(
            f"{run.name}: val {score(found, 'val'):.1f}, test {score(found, 'test'):.1f}, {found['time/fit_s']:.0f} s",
            flush=True,
        )

    if not arguments.table_only:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(train, runs))


def best_rate(data: str, arguments: argparse.Namespace, seed: int) -> str | None:
    """The learning rate with which full fine-tuning is best on validation; None where none has finished."""
    found = {rate: metrics(Run(data, FULL, seed, rate), arguments.folder) for rate in arguments.rates.split(",")}
    scores = {rate: score(each, "val") for rate, each in found.items() if each is not None}
    return max(scores, key=lambda rate: scores[rate]) if scores else None


def main() -> None:
    """Tune full fine-tuning, run the rest at defaults, print the table."""
    arguments = parse()
    arguments.folder = arguments.folder.resolve()
    names = [name if not Path(name).is_dir() else str(Path(name).resolve()) for name in arguments.data]
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    methods = arguments.methods.split(",")
    for seed in seeds:
        carry_out([Run(data, method, seed) for data in names for method in methods], arguments)
        if seed == seeds[0]:
            rates = arguments.rates.split(",")
            carry_out([Run(data, FULL, seed, rate) for data in names for rate in rates], arguments)
        chosen = {data: best_rate(data, arguments, seeds[0]) for data in names}
        carry_out([Run(data, FULL, seed, rate) for data, rate in chosen.items() if rate is not None], arguments)

    print("\n| data | chance | " + " | ".join(methods) + " | full, best of three rates |")
    print("|---" * (len(methods) + 3) + "|")
    for data in names:
        rate = best_rate(data, arguments, seeds[0])
        rows = [[metrics(Run(data, method, seed), arguments.folder) for seed in seeds] for method in methods]
        rows.append([metrics(Run(data, FULL, seed, rate or ""), arguments.folder) for seed in seeds])
        scores = [[score(each, "test") for each in row if each is not None] for row in rows]
        some = next((each for row in rows for each in row if each is not None), None)
        if some is None:
            continue
        chance = some.get("random_order/mean_recall", some.get("test/majority", 0.0))
        cells = [cell(each, full=scores[-1], chance=chance) for each in scores]
        print(f"| {Path(data).name} | {chance:.1f} | {' | '.join(cells)} ({rate}) |")


def cell(scores: Sequence[float], *, full: Sequence[float], chance: float) -> str:
    """Mean and range of the seeds, and the gain over chance as a share of full fine-tuning's."""
    if not scores:
        return "–"
    mean = statistics.mean(scores)
    spread = f" ({min(scores):.1f} to {max(scores):.1f})" if len(scores) > 1 else ""
    gain = statistics.mean(full) - chance if full else 0.0
    share = f", {(mean - chance) / gain:.2f}" if gain > 0 and scores is not full else ""
    return f"{mean:.1f}{spread}{share}"


if __name__ == "__main__":
    main()
