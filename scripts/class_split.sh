#!/usr/bin/env bash
# Train a classifier split by class (GR appendix B.1) and its unrouted control, for SEEDS seeds (default 3), and compare
# them: the difference of their decoders is the accuracy that routing costs. Further arguments are overrides of every run.
# usage: SEEDS=3 scripts/class_split.sh [dataset=fashion_mnist dataset.root=FOLDER …]
set -euo pipefail
seeds=$(seq -s, 0 $((${SEEDS:-3} - 1)))
gradroute-run -m experiment=class_split routing=class_halves,class_none "seed=$seeds" "$@"
