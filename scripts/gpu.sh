#!/usr/bin/env bash
# On one NVIDIA GPU, in at most 9 minutes: the tests that need one, then every measurement that is open there. Each part
# writes outputs/measured/gpu_*.json; a part that has its file is not made again, so the same command goes on.
# usage: scripts/gpu.sh [--minutes 9] [--only update,stack,…] [--again] [--dry-run]
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHONPATH="$PWD:$PWD/scripts${PYTHONPATH:+:$PYTHONPATH}" exec python scripts/gpu.py "$@"
