#!/usr/bin/env bash
# Run Expand, Route, Ablate and the other methods for SEEDS seeds (default 3), with all and with a quarter of the labels,
# then compare them. Methods that differ only after training share the trained model. Further arguments are overrides of
# every run. On two cores, two processes of one thread each are faster than one process. The same command resumes
# interrupted runs.
# usage: SEEDS=3 JOBS=2 FRACTIONS="1 0.25" scripts/stories_era.sh [trainer=paper …]
set -euo pipefail
seeds=$(seq -s, 0 $((${SEEDS:-3} - 1)))
export OMP_NUM_THREADS=$((($(nproc) + ${JOBS:-2} - 1) / ${JOBS:-2}))
each() { # print every experiment with every labelled fraction
    for fraction in ${FRACTIONS:-1 0.25}; do
        for experiment in "$@"; do echo "experiment=$experiment routing.labelled_fraction=$fraction"; done
    done
}
run() { xargs -P "${JOBS:-2}" -L 1 gradroute-run -m "seed=$seeds" trained=auto "$@"; }
{
    printf 'experiment=stories_era/%s\n' base control # these use no labels
    each stories_era stories_era/{demix,sgtm,filtering}
} | run "$@"
each stories_era/{rmu,era_rmu} | run "$@"
gradroute-compare 'outputs/stories_*' --out outputs/comparisons/stories_era --format markdown
