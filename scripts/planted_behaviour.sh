#!/usr/bin/env bash
# Run the planted behaviour and its control arms for SEEDS seeds (default 3), and compare how often the behaviour is shown.
# Further arguments are overrides of every run. The same command resumes interrupted runs.
# usage: SEEDS=3 scripts/planted_behaviour.sh [trainer=smoke …]
set -euo pipefail
seeds=$(seq -s, 0 $((${SEEDS:-3} - 1)))
arms=planted_behaviour,planted_behaviour/joint,planted_behaviour/filtering
arms+=,planted_behaviour/placebo_labels,planted_behaviour/placebo_direction
gradroute-run -m "experiment=$arms" "seed=$seeds" output_dir=outputs/planted "$@"
python "$(dirname "$0")/planted_table.py" outputs/planted
