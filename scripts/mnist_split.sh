#!/usr/bin/env bash
# Run the main experiment over three seeds, with fresh certificates trained on the frozen encoding, then compare the runs.
# usage: scripts/mnist_split.sh [TRAINER] [SEED,SEED,…]
set -euo pipefail
trainer=${1:-fast} seeds=${2:-0,1,2}
gradroute-run -m "trainer=$trainer" "seed=$seeds" 'steps=[train,certify,ablate,evaluate,report]' \
    "output_dir=outputs/measured_$trainer"
gradroute-compare "outputs/measured_$trainer"/mnist_split/*
