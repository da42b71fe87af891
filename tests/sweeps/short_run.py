"""A process that leaves what a run leaves, in a moment: for tests of those who start processes and watch over them.

Its figure grows by `lr` each epoch, `epoch_s` seconds apart. `fail=N` ends it with that exit code, or by signal -N,
while a file `fail` lies beside its run directory; `diverges_from=X` as a loss that is not finite does, from lr X on,
`collapses_from=X` as a run does that is stopped for it learns nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

signal.pthread_sigmask(signal.SIG_SETMASK, ())  # as mwa-train does when it has imported enough to answer signals
words = dict(argument.split("=", 1) for argument in sys.argv[1:])
run = Path(words["run_dir"].strip("'"))
if (run.parent / "fail").exists() and "fail" in words:
    print("short run: error: as was asked for", file=sys.stderr)
    sys.stderr.flush()
    if int(words["fail"]) < 0:
        os.kill(os.getpid(), -int(words["fail"]))
    sys.exit(int(words["fail"]))
if float(words.get("lr", 0)) >= float(words.get("diverges_from", "inf")):
    print("short run: error: step 3: the loss is not finite", file=sys.stderr)
    sys.exit(4)
if float(words.get("lr", 0)) >= float(words.get("collapses_from", "inf")):
    print("short run: error: the embeddings have collapsed", file=sys.stderr)
    sys.exit(5)
default = "val/mean_recall" if "optim.lr" in words else "val/score"  # started by a command, or by a test
monitor = words.get("training.monitor", default)
rate = float(words.get("optim.lr", words.get("lr")))
run.mkdir(exist_ok=True)
(run / "config.yaml").write_text(json.dumps({"training": {"monitor": monitor}, "split": "test", **words}))
with (run / "starts").open("a") as file:
    threads, gpus = os.environ.get("OMP_NUM_THREADS", "free"), os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    print(os.getpid(), threads, gpus, file=file)
table = run / "metrics.csv"
if not table.exists():
    table.write_text("step,epoch,name,value\n")
done = len(table.read_text().splitlines()) - 1
for epoch in range(done, int(words.get("epochs", 1))):
    time.sleep(float(words.get("epoch_s", 0)))
    with table.open("a") as file:
        print(f"{epoch},{epoch},{monitor},{rate * (epoch + 1)}", file=file)
figures = {monitor: rate * int(words.get("epochs", 1)), "test/score": 1.0, "time/fit_s": 0.5}
(run / "metrics.json").write_text(json.dumps(figures))
