"""The benchmark of reading: what it prints and what it writes, of the forms that need no further library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_shards__rows_of_all_forms(tmp_path: Path) -> None:
    file = tmp_path / "shards.json"
    options = f"--pictures 30 --kilobytes 100 --shard-mb 1 --rounds 1 --folder {tmp_path} --json {file}"
    command = [sys.executable, str(ROOT / "scripts" / "benchmark" / "shards.py"), *options.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shown = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    content = json.loads(file.read_text())
    rows = {row["form"]: row for row in content["rows"]}
    assert list(rows)[:2] == ["files", "shards"]
    assert rows["files"]["files"] == 31
    assert 3 + 2 < rows["shards"]["files"] < 10
    assert rows["shards"]["bytes"] < 1.1 * rows["files"]["bytes"]
    assert all(f"{row['bytes']:,}" in shown for row in rows.values())
    assert set(rows["shards"]["ratio"]) == {"in order", "random"}
    assert rows["files"]["ratio"] == {"in order": 1.0, "random": 1.0}
    assert list(tmp_path.iterdir()) == [file]
