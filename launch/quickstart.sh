#!/usr/bin/env bash
# Four federated clients on this machine, one per rank, on the embedded digits.
#   NPROC=4   ranks, which is also the number of clients
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

exec python -m fedddp launch --ranks="${NPROC:-4}" "$@"
