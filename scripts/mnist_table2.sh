#!/usr/bin/env bash
# Run every row of GR table 2 for SEEDS seeds (default 3), then print the table. Further arguments are overrides of every
# run. On a CPU, JOBS=2 processes that share the cores are faster than one. The same command resumes interrupted runs.
# usage: SEEDS=3 JOBS=2 scripts/mnist_table2.sh [trainer=paper …]
set -euo pipefail
seeds=$(seq -s, 0 $((${SEEDS:-3} - 1)))
if ((${JOBS:-1} > 1)); then
    export OMP_NUM_THREADS=$((($(nproc) + JOBS - 1) / JOBS))
    seq 10 | xargs -P "$JOBS" -I{} gradroute-run -m "experiment=mnist_table2/row{}" "seed=$seeds" "$@"
else
    rows=$(printf 'mnist_table2/row%s,' 1 2 3 4 5 6 7 8 9 10)
    gradroute-run -m "experiment=${rows%,}" "seed=$seeds" "$@"
fi
gradroute-compare 'outputs/mnist_table2_row*' --format markdown
