#!/usr/bin/env bash
# Four federated clients on this machine, one per rank, on the embedded digits.
#   NPROC=4   ranks, which is also the number of clients
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

NPROC=${NPROC:-4}
share_cores "$NPROC"
exec torchrun --standalone --local_addr=127.0.0.1 --nproc_per_node="$NPROC" -m fedddp.train "$@"
