#!/usr/bin/env bash
# Run the split over the weight of the correlation penalty. split.outside=1 is the unrouted autoencoder. GR appendix B has 10 runs of each setting.
# usage: SEEDS=3 scripts/sweep_correlation.sh [trainer=fast …]
set -euo pipefail
gradroute-run -m 'split.groups=[[0,1,2,3,4],[5,6,7,8,9]]' split.outside=0,1 \
    model.hidden=[2048,256] losses.correlation=1e-6,1e-4,1e-2,0.1,1,10 \
    "seed=$(seq -s, 0 $((${SEEDS:-3} - 1)))" "$@"
