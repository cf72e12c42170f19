#!/usr/bin/env bash
# Train every arm of oversight for SEEDS seeds (default 5) at each of SHARES, JOBS runs at a time, and make the table and
# the plot of GR section 4.3 in OUT. Further arguments are overrides of every run. The same command continues a study that
# was stopped: RESULTS has its numbers (default OUT/curves.csv).
# usage: SEEDS=5 SHARES="0.05 0.3" ARMS="routing early_stopping" JOBS=2 scripts/oversight.sh [trainer=smoke …]
set -euo pipefail
out=${OUT:-outputs/oversight_study}
read -r -a shares <<< "${SHARES:-0.003 0.01 0.03 0.05 0.1 0.3 0.8}"
read -r -a arms <<< "${ARMS:+--arms $ARMS}" # all, if none are named
python "$(dirname "$0")/oversight.py" --seeds "${SEEDS:-5}" --jobs "${JOBS:-2}" --shares "${shares[@]}" \
    "${arms[@]}" --out "$out" --results "${RESULTS:-$out/curves.csv}" "$@"
