#!/usr/bin/env bash
# Several machines; the same command on each:  NNODES=2 RDZV_ENDPOINT=first-host:29400 launch/multi_node.sh FILE.toml
#   NNODES         number of machines (MIN:MAX works too)
#   RDZV_ENDPOINT  HOST:PORT where they meet: one of the machines, reachable from all
#   RDZV_ID        name of the job, the same on all, another for each start. Without it a job that is started again is a
#                  new run, unless --run.resume=auto
#   NPROC          ranks on this machine (default: the number of visible GPUs, or 2 without one)
#   IS_HOST        1 on the machine that holds the meeting point and 0 on the others (default: 1 where HOST is an
#                  address of this machine)
#   JOIN_TIMEOUT   seconds that machines wait for each other (default: 600)
#   PET_...        any other option of torchrun, e.g. PET_MAX_RESTARTS=3
# These are torchrun's agents, which restart the ranks of all machines when one fails. On a link that is cut for good
# they wait without a limit; fedddp launch --nnodes does not, but does not restart either.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

: "${NNODES:?is not set: the number of machines}" "${RDZV_ENDPOINT:?is not set: HOST:PORT where the machines meet}"
NPROC=${NPROC:-$(default_ranks)}
JOIN_TIMEOUT=${JOIN_TIMEOUT:-600}
IS_HOST=${IS_HOST:-$(is_own "${RDZV_ENDPOINT%:*}")}
divide_cores "$NPROC"
echo "multi_node.sh: this machine $([[ $IS_HOST == 1 ]] && echo holds || echo "does not hold") the meeting point" \
    "$RDZV_ENDPOINT; waiting up to $JOIN_TIMEOUT s for $NNODES machines" >&2
exec torchrun --nnodes="$NNODES" --nproc_per_node="$NPROC" \
    --rdzv_backend=c10d --rdzv_endpoint="$RDZV_ENDPOINT" --rdzv_id="${RDZV_ID:-fedddp}" \
    --rdzv_conf="is_host=$IS_HOST,join_timeout=$JOIN_TIMEOUT,read_timeout=$JOIN_TIMEOUT" -m fedddp.train "$@"
