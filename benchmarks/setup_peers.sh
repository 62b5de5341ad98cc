#!/bin/sh
# Sets up the peers that the benchmarks compare with, each in a virtual environment of its own:
#     benchmarks/setup_peers.sh [FOLDER] [pfl|flower]
# FOLDER is .peers in the repository by default; without a name, both. PYTHON chooses the interpreter (pfl: 3.10 to
# 3.12, Flower: 3.11 to 3.14), TORCH the version of torch. On a machine without a GPU name PyTorch's CPU wheel index in
# PIP_EXTRA_INDEX_URL, or pip fetches gigabytes of CUDA.
set -eu
folder=${1:-$(dirname "$0")/../.peers}
torch="torch==${TORCH:-2.13.0}" # the same for all contenders; in pip's command, so that no requirement replaces it

setup() { # NAME REQUIREMENT
    "${PYTHON:-python3.11}" -m venv "$folder/$1"
    "$folder/$1/bin/python" -m pip install --quiet "$torch" "$2"
    "$folder/$1/bin/python" -c "import torch; print('$1: torch', torch.__version__)"
}

case ${2:-both} in
both | pfl | flower) ;;
*) echo "setup_peers.sh: no peer is called $2; there are pfl and flower" >&2 && exit 2 ;;
esac
[ "${2:-pfl}" != pfl ] || setup pfl "pfl[pytorch]==0.6.0"
[ "${2:-flower}" != flower ] || setup flower "flwr[simulation]==1.41.0"
