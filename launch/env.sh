# shellcheck shell=bash
# Sourced by the launch scripts: which Python runs which code in what environment. Nothing changes the directory, so
# relative paths on the command line mean what they say.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
export PATH="${VENV:-$root/.venv}/bin:$PATH"         # the environment of setup.sh if it is there, else what PATH has
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" # the code beside this script, installed or not

# A restarted attempt must not find the addresses of the last one in the agent's store.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# Says what the calling script does and which variables it takes (its leading comment), then shows fedddp's own help.
for argument in "$@"; do
    if [[ $argument == -h || $argument == --help ]]; then
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
        echo
        exec python -m fedddp train --help
    fi
done

# The number of ranks a machine is made for: its visible GPUs, or 2 without one.
default_ranks() {
    if nvidia-smi -L >/dev/null 2>&1; then
        python -c 'import torch; print(torch.cuda.device_count() or 2)'
    else
        echo 2
    fi
}

# divide_cores RANKS: as many cores for every rank, unless the user decided. fedddp sets its threads itself
# (run.threads); this only keeps torchrun from warning that it chose for us.
divide_cores() {
    local cores
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > $1 ? cores / $1 : 1))}"
}

# is_own HOST: 1 if HOST is this machine, else 0: a program can listen at one of its addresses here. torchrun compares
# host names instead, and sees no address that the own name does not resolve to.
is_own() {
    python - "$1" <<'EOF'
import socket, sys

host = sys.argv[1].strip("[]")
try:
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
except OSError:
    print(f"RDZV_ENDPOINT: {host} has no address here; write the address itself", file=sys.stderr)
    sys.exit(2)
for family, _, _, _, address in found:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(address)
    except OSError:
        continue
    print(1)
    sys.exit()
print(0)
EOF
}
