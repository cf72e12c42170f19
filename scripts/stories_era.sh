#!/usr/bin/env bash
# Expand, Route, Ablate beside the other methods, for SEEDS seeds (default 3) with all and with a quarter of the labels,
# then the comparison. Methods that differ only after the training share it. Further arguments are overrides of every
# run. Two processes of one thread each do more than one on two cores; given again, it goes on where it was.
# usage: SEEDS=3 JOBS=2 FRACTIONS="1 0.25" scripts/stories_era.sh [trainer=paper …]
set -euo pipefail
seeds=$(seq -s, 0 $((${SEEDS:-3} - 1)))
export OMP_NUM_THREADS=$((($(nproc) + ${JOBS:-2} - 1) / ${JOBS:-2}))
each() { # experiments, each at every fraction of labels
    for fraction in ${FRACTIONS:-1 0.25}; do
        for experiment in "$@"; do echo "experiment=$experiment routing.labelled_fraction=$fraction"; done
    done
}
run() { xargs -P "${JOBS:-2}" -L 1 gradroute-run -m "seed=$seeds" trained=auto "$@"; }
{
    printf 'experiment=stories_era/%s\n' base control # they know no labels
    each stories_era stories_era/{demix,sgtm,filtering}
} | run "$@"
each stories_era/{rmu,era_rmu} | run "$@"
gradroute-compare 'outputs/stories_*' --out outputs/comparisons/stories_era --format markdown
