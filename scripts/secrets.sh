#!/usr/bin/env bash
# Train models on secrets of people by five methods, for SEEDS seeds (default 3), attack each, and compare them: routing
# to units and to an adapter, the plain model, data filtering, and DP-SGD (pip install -e '.[hf,dp]'). Further arguments
# are overrides of every run. The same command resumes interrupted runs and does not make finished ones again.
# usage: SEEDS=3 OUT=outputs/secrets_study METHODS="secrets secrets/plain" scripts/secrets.sh [trainer=smoke …]
set -euo pipefail
out=${OUT:-outputs/secrets_study}
for seed in $(seq 0 $((${SEEDS:-3} - 1))); do # all methods of a seed, then the next: a study that is stopped is balanced
    for method in ${METHODS:-secrets secrets/adapter secrets/plain secrets/filtering secrets/dpsgd}; do
        gradroute-run -m "experiment=$method" "seed=$seed" "output_dir=$out" "$@"
    done
done
gradroute-compare "$out"/secrets* --out "$out/comparison" --format csv > /dev/null
python "$(dirname "$0")/secrets_table.py" "$out"/secrets*
