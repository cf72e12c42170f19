"""What many runs cost: disk by run, and `gradroute-compare`'s time and memory over COUNT synthetic run folders.

python scripts/compare_scale.py --count 10000

The folders are made by what writes real ones, with the metrics of a main job and no weights, plots or page; settings
and seeds differ. Prints one line of JSON. On a file system in memory the reading is not the disk's.
"""

import argparse
import json
import random
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from gradroute import provenance
from gradroute.composing import configuration
from gradroute.folders import read_metrics
from gradroute.records import RunFolder, final_rows

SEEDS = 10


def _like(run: Path, count: int, folder: Path) -> None:
    """Make `count` run folders with the rows of a real one, their values moved a little."""
    rows, generator = read_metrics(run), random.Random(0)
    facts = {"dataset_sha256": "0" * 64, "hardware": provenance.hardware(), "device": "cpu", "stacked": 1}
    config = configuration(["trainer=smoke", f"output_dir={folder}"])
    config.trainer.precision = "float32"
    for number in range(count):
        config.seed, config.losses.correlation = number % SEEDS, 0.001 * (number // SEEDS)
        made = RunFolder.create(config, facts)
        made.rows = [{**row, "value": row["value"] * generator.uniform(0.99, 1.01)} for row in rows]
        made.write_metrics()
        kept = ("group", "head", "region", "metric", "unit", "value")
        named = [row for row in final_rows(made.rows) if row["group"] in [*config.routing.groups, "all"]]
        made.write_json("summary.json", {"headline": [{k: row[k] for k in kept} for row in named]})
        made.finish("finished")


def main() -> None:
    """Make the folders, compare them, print what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        subprocess.run(["gradroute-run", "trainer=smoke"], cwd=place, check=True, capture_output=True)
        (run,) = (place / "outputs" / "mnist_split").iterdir()
        whole = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
        files = sum(path.is_file() for path in run.rglob("*"))
        began = time.perf_counter()
        _like(run, count, place / "many")
        made = time.perf_counter() - began
        began = time.perf_counter()
        command = ["gradroute-compare", str(place / "many"), "--format", "csv"]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        compared = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(json.dumps({
        "runs": count, "rows": len(result.stdout.splitlines()) - 1, "compare_seconds": round(compared, 1),
        "largest_child_mib": round(memory), "making_seconds": round(made, 1), "smoke_run_bytes": whole,
        "smoke_run_files": files, **provenance.hardware(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
