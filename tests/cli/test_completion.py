"""fedddp completion: what a word may become, and the scripts in the shells that are here."""

import shutil
import subprocess
import sys

import pytest

from fedddp.cli.completion import SCRIPTS, completed

LINES = [
    ("fedddp tr", ["train"]),
    ("fedddp s", ["show", "sweep", "split", "schema"]),
    ("fedddp show con", ["configs"]),
    ("fedddp train mnist/fedavg_e", ["mnist/fedavg_e5"]),
    ("fedddp train --ro", ["--rounds="]),
    ("fedddp train --print", ["--print-config"]),
    ("fedddp train --run.r", ["--run.rounds=", "--run.resume="]),
    ("fedddp train --algorithm=sc", ["--algorithm=scaffold"]),
    ("fedddp train --lr=0.1 --client.optimizer.name=adam", [f"--client.optimizer.name={n}" for n in ("adam", "adamw")]),
    ("fedddp train --client.optimizer=sg", ["--client.optimizer=sgd"]),
    ("fedddp train --data=mnist-", ["--data=mnist-mini"]),
    ("fedddp train --run.device=c", ["--run.device=cpu", "--run.device=cuda"]),
    ("fedddp train --data.download=", ["--data.download=true", "--data.download=false"]),
    ("fedddp train --evaluate.target_accuracy=", ["--evaluate.target_accuracy=off"]),
    ("fedddp train --run.rounds=", []),
    ("fedddp train --sweep.n", []),
    ("fedddp sweep --sweep.np", ["--sweep.nproc="]),
    ("fedddp help algorithm.sc", ["algorithm.scaffold"]),
    ("fedddp train --help mod", ["model", "model.logistic", "model.mlp"][:1]),
    ("fedddp completion z", ["zsh"]),
    ("fedddp plot run", []),
    ("fedddp plan --li", ["--link"]),
    ("fedddp plan mnist/fedavg_e", ["mnist/fedavg_e5"]),
]


@pytest.mark.parametrize(("line", "words"), LINES)
def test_the_last_word_of_a_line_is_completed(line, words):
    found = completed(line)
    assert found[: len(words)] == words
    assert words or not found


BASH = """
fedddp() {{ {python} -m fedddp "$@"; }}
eval "$(fedddp completion bash)"
for COMP_LINE in "fedddp tr" "fedddp train --algorithm=sc" "fedddp train --run.ro"; do
    COMP_POINT=${{#COMP_LINE}}
    _fedddp
    echo "${{COMPREPLY[*]}}"
done
"""


@pytest.mark.slow
def test_the_script_completes_in_bash():
    """Where the word is split at "=", as bash does it, what is completed is the part behind."""
    command = ["bash", "-c", BASH.format(python=sys.executable)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["train", "scaffold", "--run.rounds="], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_is_one_of_its_shell(shell):
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    done = subprocess.run([shell, "-n", "-c", SCRIPTS[shell]], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
