"""Split by other partitions of the labels, for the table in outputs/measured/README.md.

python scripts/partitions.py                              every partition of MNIST, one seed each
python scripts/partitions.py --fashion FOLDER             Fashion-MNIST as well, from a folder in torchvision's layout
python scripts/partitions.py --figures outputs/measured/parts trainer.epochs=1    copy the encodings; with overrides

Finished runs are reused and interrupted ones are resumed. Prints a Markdown table.
"""

import argparse
import json
import shutil
from pathlib import Path
from statistics import mean

from gradroute.config.compose import configuration
from gradroute.records.run_reader import read_config, read_file, read_manifest
from gradroute.running.exit_status import guarded
from gradroute.running.runner import execute

PARTITIONS = {
    "mnist": [
        [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]],
        [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]],
        [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]],
        [[label] for label in range(10)],
    ],
    "fashion_mnist": [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]],
}


def spread(values: list[float]) -> str:
    """Return the mean, smallest and largest value as text."""
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def row(run: Path, dataset: str) -> str:
    """Return a run's row of the table."""
    manifest = read_manifest(run)
    config = read_config(run, manifest)
    found = {
        (entry["head"], entry["region"], entry["group"], entry["metric"]): entry["value"]
        for entry in json.loads(read_file(run, "summary.json", manifest))["headline"]
    }
    groups = list(config.routing.groups)
    seen = {(a, b): found["certificate", f"for_{b}", a, "mse"] for a in groups for b in groups}
    own, other = ([seen[a, b] for a, b in seen if (a == b) == alike] for alike in (True, False))
    decoder = mean(found["decoder", "all", group, "mse"] for group in groups)
    scores = [found["score", "all", group, "localization"] for group in groups]
    parts = r" \| ".join("".join(map(str, rule.labels)) for rule in config.routing.groups.values())
    cells = [f"{dataset}: {parts}", spread(own), spread(other), f"{decoder:.3f}"]
    return f"| {' | '.join(cells)} | {min(scores):.2f} to {max(scores):.2f} |"


def main() -> None:
    """Make the runs and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fashion", help="a folder with FashionMNIST/raw in it")
    parser.add_argument("--figures", type=Path, help="a folder to copy the pictures of the encodings to")
    parser.add_argument("--only", type=int, action="append", help="number of a partition, from 0; repeatable")
    parser.add_argument("overrides", nargs="*", help="overrides of every run, such as trainer.epochs=1")
    arguments = parser.parse_args()
    wanted: list[tuple[str, list[list[int]], list[str]]] = [("mnist", groups, []) for groups in PARTITIONS["mnist"]]
    if arguments.fashion:
        root = [f"dataset.root={arguments.fashion}"]
        wanted += [("fashion_mnist", groups, root) for groups in PARTITIONS["fashion_mnist"]]
    print("| partition | own group | other groups | decoder | localization |\n|---|---|---|---|---|", flush=True)
    for number in arguments.only or range(len(wanted)):
        dataset, groups, root = wanted[number]
        overrides = [f"dataset={dataset}", f"split.groups={json.dumps(groups)}", *root, *arguments.overrides]
        (run,) = execute([configuration(overrides)], reuse=True)
        if not isinstance(run, Path):
            raise run
        print(row(run, dataset), flush=True)
        if arguments.figures:
            arguments.figures.mkdir(parents=True, exist_ok=True)
            name = "_".join("".join(map(str, part)) for part in groups)
            shutil.copy(run / "plots" / "encoding_encoder.png", arguments.figures / f"{dataset}_{name}.png")


if __name__ == "__main__":
    raise SystemExit(guarded(main))
