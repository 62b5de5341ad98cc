#!/usr/bin/env bash
# One machine, one rank per GPU:  launch/single_node.sh FILE.toml --section.key=value
#   NPROC   ranks (default: the number of visible GPUs, or 2 without one)
# --max-restarts=3 starts all ranks again when one fails.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

exec python -m fedddp launch ${NPROC:+--ranks="$NPROC"} "$@"
