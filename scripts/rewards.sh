#!/usr/bin/env bash
# Train a language model by a reward that can be hacked, routed to adapters and by two control arms, for SEEDS seeds
# (default 3), and compare what their replies come to. Further arguments are overrides of every run. The same command
# resumes interrupted runs.
# usage: SEEDS=3 scripts/rewards.sh [trainer=smoke …]
set -euo pipefail
seeds=$(seq -s, 0 $((${SEEDS:-3} - 1)))
gradroute-run -m experiment=rewards,rewards/joint,rewards/filtering "seed=$seeds" output_dir=outputs/rewards "$@"
python "$(dirname "$0")/rewards_table.py" outputs/rewards
