#!/usr/bin/env bash
# Run the split over the width of the encoding, with and without L1. split.outside=1 is the unrouted autoencoder. GR appendix B has 10 runs of each setting.
# usage: SEEDS=3 scripts/sweep_encoding.sh [trainer=fast …]
set -euo pipefail
gradroute-run -m 'split.groups=[[0,1,2,3,4],[5,6,7,8,9]]' split.outside=0,1 \
    model.hidden=[2048,256] model.encoding=4,8,16,32,64,128,256 split.l1=0,3e-3 \
    "seed=$(seq -s, 0 $((${SEEDS:-3} - 1)))" "$@"
