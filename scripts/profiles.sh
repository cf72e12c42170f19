#!/usr/bin/env bash
# Run the access profiles and their control arms for SEEDS seeds (default 3), and compare what each method releases.
# Further arguments are overrides of every run. The same command resumes interrupted runs. Needs gradroute[hf].
# usage: SEEDS=3 scripts/profiles.sh [trainer=smoke …]
set -euo pipefail
arms="profiles profiles/filtering profiles/control profiles/max_entropy profiles/experts profiles/adapter"
arms+=" profiles/half_labels profiles/filtering_half_labels"
for seed in $(seq 0 $((${SEEDS:-3} - 1))); do # all arms of a seed, then the next: a study that is stopped is balanced
    for arm in $arms; do # maximum entropy begins with the control's training
        gradroute-run -m "experiment=$arm" "seed=$seed" trained=auto output_dir=outputs/profiles_study "$@"
    done
done
python "$(dirname "$0")/profiles_table.py" outputs/profiles_study
