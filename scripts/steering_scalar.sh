#!/usr/bin/env bash
# Run steering by one scalar, routed and unrouted, for SEEDS seeds (default 3), then compare the runs. Further arguments
# are overrides of every run. The same command resumes interrupted runs.
# usage: SEEDS=3 JOBS=2 scripts/steering_scalar.sh [trainer=smoke …]
set -euo pipefail
seeds=$(seq -s, 0 $((${SEEDS:-3} - 1)))
export OMP_NUM_THREADS=$((($(nproc) + ${JOBS:-2} - 1) / ${JOBS:-2}))
printf 'routing=%s\n' steering_words steering_unrouted |
    xargs -P "${JOBS:-2}" -L 1 gradroute-run -m experiment=steering_scalar "seed=$seeds" "$@"
for metric in related_llr matched_llr related_times related_share; do
    gradroute-compare outputs/steering_scalar --metric "$metric" --format markdown
done
