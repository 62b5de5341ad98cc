#!/usr/bin/env bash
# One party of a deployment: its own machine, its own process, its own client's data. On each party's machine:
#   RANK=1 WORLD_SIZE=3 MASTER_ADDR=10.0.0.1 PARTS=parts launch/party.sh FILE.toml --section.key=value
#   RANK           this party's number, 0 to WORLD_SIZE - 1; rank 0 holds the store where all meet, and must stay
#   WORLD_SIZE     number of parties, at least 3 for secure aggregation
#   MASTER_ADDR    rank 0's address, as the others reach it
#   MASTER_PORT    its port (default: 29500)
#   PARTS          folder with public/ and this party's client folder, from fedddp split
#   ROSTER, KEY    everybody's public keys and this party's own, from fedddp keygen: both turn secure
#                  aggregation on
#   INTERFACE      network interface that the ranks talk through, such as wg0 (default: that of the host's name)
#   COMMAND        train (default), or doctor to look at the network and the files before
# Not torchrun: its agent ends every rank of a machine when one dies, where the survivors of secure aggregation can go
# on. All parties give the same keys; what differs are paths, which do not count. A run that was cut goes on with
# --run.resume=auto, given to all.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

: "${RANK:?is not set: the number of this party, from 0}" "${WORLD_SIZE:?is not set: the number of parties}"
: "${MASTER_ADDR:?is not set: the address of rank 0}"
export RANK WORLD_SIZE MASTER_ADDR MASTER_PORT="${MASTER_PORT:-29500}"
export LOCAL_RANK=0 LOCAL_WORLD_SIZE=1                                            # a machine of its own
unset TORCHELASTIC_USE_AGENT_STORE TORCHELASTIC_RESTART_COUNT TORCHELASTIC_RUN_ID # no agent: rank 0 holds the store
divide_cores 1
[[ -z ${INTERFACE:-} ]] || export GLOO_SOCKET_IFNAME="$INTERFACE" NCCL_SOCKET_IFNAME="$INTERFACE"

words=()
[[ -z ${PARTS:-} ]] || words+=(--data.name=parts --data.root="$PARTS")
if [[ -n ${ROSTER:-}${KEY:-} ]]; then
    : "${ROSTER:?is not set, but KEY is: both turn secure aggregation on}"
    : "${KEY:?is not set, but ROSTER is: both turn secure aggregation on}"
    words+=(--privacy.secure_aggregation.enabled=true
        --privacy.secure_aggregation.roster="$ROSTER" --privacy.secure_aggregation.key="$KEY")
fi
exec python -m fedddp "${COMMAND:-train}" ${words[@]+"${words[@]}"} "$@"
