#!/usr/bin/env bash
# Run the split over the weight of the L1 penalty. split.outside=1 is the unrouted autoencoder. GR appendix B has 10 runs of each setting.
# usage: SEEDS=3 scripts/sweep_l1.sh [trainer=fast …]
set -euo pipefail
gradroute-run -m 'split.groups=[[0,1,2,3,4],[5,6,7,8,9]]' split.outside=0,1 \
    model.hidden=[2048,256] split.l1=1e-5,1e-4,5e-4,1e-3,3e-3,1e-2,5e-2 \
    "seed=$(seq -s, 0 $((${SEEDS:-3} - 1)))" "$@"
