#!/usr/bin/env bash
# Run the split over the width of the hidden layer beside the encoding. split.outside=1 is the unrouted autoencoder. GR appendix B has 10 runs of each setting.
# usage: SEEDS=3 scripts/sweep_hidden_width.sh [trainer=fast …]
set -euo pipefail
gradroute-run -m 'split.groups=[[0,1,2,3,4],[5,6,7,8,9]]' split.outside=0,1 \
    'model.hidden=[2048,32],[2048,64],[2048,128],[2048,256],[2048,512],[2048,1028]' \
    "seed=$(seq -s, 0 $((${SEEDS:-3} - 1)))" "$@"
