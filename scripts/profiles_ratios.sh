#!/usr/bin/env bash
# Train the plain model of the access profiles for four epochs, and measure GRAM's profiles in updates of that training, for
# SEEDS seeds (default 3). It uses the runs of scripts/profiles.sh in RUNS (default outputs/profiles_study), and makes those
# that are missing. Further arguments are overrides of every run. Needs gradroute[hf].
# usage: SEEDS=3 scripts/profiles_ratios.sh [trainer=smoke …]
set -euo pipefail
runs=${RUNS:-outputs/profiles_study}
gradroute-run -m experiment=profiles/control seed=0 trainer.epochs=4 output_dir=outputs/profiles_baseline "$@"
baseline=$(ls -d "$PWD"/outputs/profiles_baseline/profiles_control/*seed0 | tail -n 1)
measured='[core,core+sea,core+farm,core+town,core+castle,core+sea+farm+town+castle]'
for seed in $(seq 0 $((${SEEDS:-3} - 1))); do
    gradroute-run -m experiment=profiles "seed=$seed" "output_dir=$runs" "$@"
    gradroute-run experiment=profiles "seed=$seed" "output_dir=outputs/profiles_ratios" "$@" \
        "trained=$(ls -d "$runs"/profiles/*"seed$seed" | tail -n 1)" "steps=[train,ablate,relearn,profiles,evaluate]" \
        "profiles.baseline='$baseline'" "profiles.profiles=$measured" 'profiles.doses=[]'
done
gradroute-compare outputs/profiles_ratios --metric compute_ratio --format markdown
