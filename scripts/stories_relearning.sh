#!/usr/bin/env bash
# Run this after scripts/stories_era.sh, in the same folder: it reuses the trained models, and every method relearns from
# 64 documents again, at RATE times the training's learning rate. The default 0.0125 gives 5e-5: the published rate itself,
# not its ratio to the published training's rate. The runs are called slow_METHOD.
# usage: SEEDS=3 JOBS=2 FRACTIONS="1 0.25" RATE=0.0125 scripts/stories_relearning.sh [trainer=paper …]
set -euo pipefail
seeds=$(seq -s, 0 $((${SEEDS:-3} - 1)))
export OMP_NUM_THREADS=$((($(nproc) + ${JOBS:-2} - 1) / ${JOBS:-2}))
{
    printf 'experiment=stories_era/%s name=slow_%s\n' base base control control # these use no labels
    for fraction in ${FRACTIONS:-1 0.25}; do
        echo "experiment=stories_era name=slow_era routing.labelled_fraction=$fraction"
        for method in demix sgtm filtering rmu era_rmu; do
            echo "experiment=stories_era/$method name=slow_$method routing.labelled_fraction=$fraction"
        done
    done
} | xargs -P "${JOBS:-2}" -L 1 gradroute-run -m "seed=$seeds" trained=auto \
    "relearn.rate=${RATE:-0.0125}" 'relearn.documents=[64]' completions=null "$@"
