#!/usr/bin/env bash
# TensorBoard over all runs:  launch/tensorboard.sh [options of fedddp tensorboard, e.g. --port=6007]
#   LOGDIR   where the runs are (default: runs, here)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
export PATH="${VENV:-$root/.venv}/bin:$PATH"

exec python -m fedddp tensorboard "${LOGDIR:-runs}" "$@"
