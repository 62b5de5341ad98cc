#!/usr/bin/env bash
# Several machines; the same command on each:  NNODES=2 RDZV_ENDPOINT=first-host:29400 launch/multi_node.sh FILE.toml
#   NNODES         number of machines (MIN:MAX works too)
#   RDZV_ENDPOINT  HOST:PORT where they meet: one of the machines, reachable from all
#   RDZV_ID        name of the job, the same on all, another for each start (default: fedddp)
#   NPROC          ranks on this machine (default: the number of visible GPUs, or 2 without one)
#   IS_HOST        1 on the machine that holds the meeting point and 0 on the others; needed only where torchrun cannot
#                  see it from the name: two agents on one machine, or host names that resolve to loopback
#   PET_...        any other option of torchrun, e.g. PET_MAX_RESTARTS=3
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

: "${NNODES:?is not set: the number of machines}" "${RDZV_ENDPOINT:?is not set: HOST:PORT where the machines meet}"
NPROC=${NPROC:-$(default_ranks)}
divide_cores "$NPROC"
exec torchrun --nnodes="$NNODES" --nproc_per_node="$NPROC" \
    --rdzv_backend=c10d --rdzv_endpoint="$RDZV_ENDPOINT" --rdzv_id="${RDZV_ID:-fedddp}" \
    ${IS_HOST:+--rdzv_conf=is_host="$IS_HOST"} -m fedddp.train "$@"
