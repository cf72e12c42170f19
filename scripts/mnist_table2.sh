#!/usr/bin/env bash
# Every row of GR table 2 for SEEDS seeds (default 3), then the table. Further arguments are overrides of every run.
# usage: SEEDS=3 scripts/mnist_table2.sh [trainer=paper …]
set -euo pipefail
seeds=$(seq -s, 0 $((${SEEDS:-3} - 1)))
rows=$(printf 'mnist_table2/row%s,' 1 2 3 4 5 6 7 8 9 10)
gradroute-run -m "experiment=${rows%,}" "seed=$seeds" "$@"
gradroute-compare 'outputs/mnist_table2_row*' --format markdown
