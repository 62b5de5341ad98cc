#!/usr/bin/env bash
# One machine, one rank per GPU:  launch/single_node.sh FILE.toml --section.key=value
#   NPROC     ranks (default: the number of visible GPUs, or 2 without one)
#   PET_...   any other option of torchrun, e.g. PET_MAX_RESTARTS=3
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

NPROC=${NPROC:-$(default_ranks)}
share_cores "$NPROC"
exec torchrun --standalone --local_addr=127.0.0.1 --nproc_per_node="$NPROC" -m fedddp.train "$@"
