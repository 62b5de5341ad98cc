#!/usr/bin/env bash
# Makes the virtual environment that fedddp runs in, or brings it up to date. Does nothing when nothing changed.
#
#   VENV    where it goes (default: .venv in this checkout); an environment that is already there is used
#   PYTHON  what to make it with (default: the first of python3, python3.13, python3.12, python3.11 that fits)
#   TORCH   which torch, e.g. TORCH="torch==2.9.1" (default: the one already there; else, where an NVIDIA GPU works,
#           the newest; else the newest build for CPU that pip offers; else the newest)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${VENV:-$root/.venv}
mkdir -p "$venv" && venv=$(cd "$venv" && pwd -P)
python=$venv/bin/python
stamp=$venv/fedddp-setup
want="$root $(cat "$root/pyproject.toml" "$root/launch/setup.sh" | cksum) ${TORCH:-}"

say() { echo "setup: $*" >&2; }
pip() { "$python" -m pip "$@" 2> >(grep -v -e 'is ignored: it is' -e 'experimental command' -e '^\[notice\]' >&2); }
has_gpu() { nvidia-smi -L >/dev/null 2>&1; }

# version PYTHON MODULES: prints 3.x if that really runs, is a version we support, and has the modules.
version() {
    "$1" -c "import sys, $2; v = sys.version_info; assert (3, 11) <= v < (3, 14); print('3.%d' % v[1])" 2>/dev/null
}

# A copied checkout brings an environment that still runs the code of the original: its activate script names that path.
usable() {
    version "$python" pip >/dev/null &&
        { [[ $venv != "$root/.venv" ]] || grep -qF "$venv" "$venv/bin/activate"; } &&
        { [[ -z ${PYTHON:-} ]] || [[ $(version "$PYTHON" venv) == "$(version "$python" pip)" ]]; }
}

make_venv() {
    local candidate
    if [[ $venv != "$root/.venv" && -n $(ls -A "$venv") ]]; then
        say "$venv has no Python 3.11 to 3.13 with pip${PYTHON:+, or not $PYTHON}: remove it or name another in VENV"
        exit 1
    fi
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        version "$candidate" "venv, ensurepip" >/dev/null || continue
        say "making $venv with Python $(version "$candidate" venv)"
        rm -rf "$venv" && "$candidate" -m venv "$venv" && return
    done
    say "found no Python 3.11 to 3.13 with venv (on Debian: python3-venv)${PYTHON:+ at $PYTHON}; name one in PYTHON"
    exit 1
}

# Prints the requirement that holds torch where it belongs. Without one, pip takes the newest CUDA build on any machine.
choose_torch() {
    local installed newest
    if [[ -n ${TORCH:-} ]]; then
        echo "$TORCH"
    elif installed=$("$python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null); then
        echo "torch==$installed"
    elif ! has_gpu; then
        newest=$({ echo 2.9 && pip index versions torch | grep -oE '[0-9.]+\+cpu'; } | sort -uV | tail -n 1) || true
        if [[ $newest == *+cpu ]]; then
            echo "torch==$newest"
        elif [[ $(uname) == Linux ]]; then
            say "pip offers no CPU build of torch, so this takes the CUDA build (several GB);" \
                "to avoid that, stop and name PyTorch's CPU wheel index in PIP_EXTRA_INDEX_URL"
        fi
    fi
}

if usable && [[ $(cat "$stamp" 2>/dev/null) == "$want" ]]; then exit 0; fi
usable || make_venv
read -ra torch <<<"$(choose_torch)"
say "installing fedddp and its dependencies, with ${torch[*]:-the newest torch} (some minutes the first time)"
pip install -q -e "${root}[dev]" ${torch[@]+"${torch[@]}"}
report=$("$python" -c 'import platform, fedddp, torch
device = "CUDA" if torch.cuda.is_available() else "CPU"
print(f"ready: fedddp with torch {torch.__version__}, Python {platform.python_version()}, {device}")')
say "$report"
if [[ $report == *CPU ]] && has_gpu; then
    say "there is a GPU here, but this torch cannot use it: remove $venv and run again, or choose another in TORCH"
fi
if ! fault=$("$python" -c 'import torchvision' 2>&1); then
    say "but 'import torchvision' fails (${fault##*$'\n'}): it was built for another torch. fedddp's datasets, and modules" \
        "that its command line names, work all the same; for programs of your own install the torchvision that" \
        "belongs to this torch, from the same index: TORCH='torch==VERSION torchvision==VERSION' $0"
fi
echo "$want" >"$stamp"
