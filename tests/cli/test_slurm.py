"""fedddp launch --slurm and fedddp sweep --slurm: the scripts, what is submitted, and what is refused."""

import re
import subprocess
import sys

import pytest

from fedddp.cli.main import main
from fedddp.comm.slurm import srun_variables
from fedddp.comm.world import Place
from fedddp.errors import INTERRUPTED

RUN = ["launch", "-n", "2", "--nnodes=3", "--slurm", "--run.name=my run", "--run.rounds=2"]


@pytest.fixture
def printed(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def script(*words):
        assert main([*words, "--print"]) == 0
        return capsys.readouterr().out

    return script


def directives(script):
    return re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)


@pytest.fixture
def ran(tmp_path):
    """ran(script, code, **env): runs a script whose srun ends with ``code``; what srun and scontrol were told."""

    def run(script, code, **env):
        for name, end in (("srun", code), ("scontrol", 0)):
            body = f'#!/bin/sh\necho "{name}" "$@" "[$TORCHELASTIC_RUN_ID $TORCHELASTIC_RESTART_COUNT]"\nexit {end}\n'
            (tmp_path / name).write_text(body)
            (tmp_path / name).chmod(0o755)
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "17", **env}
        done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()

    return run


def test_a_task_a_rank_on_each_machine(printed):
    given = directives(printed(*RUN, "--sbatch=--time=04:00:00", "--sbatch=--partition=gpu"))
    assert given[0] == "--job-name=my-run"  # a space would end the name
    assert {"--nodes=3", "--ntasks-per-node=2", "--requeue", "--signal=USR1@60", "--open-mode=append"} < {*given}
    assert given[-2:] == ["--time=04:00:00", "--partition=gpu"]  # after the script's own
    assert not any("gpu" in line for line in given[:-2])
    assert "--gpus-per-node=2" in directives(printed(*RUN, "--run.device=cuda"))


@pytest.mark.parametrize(("code", "queues"), [(0, False), (1, False), (2, False), (INTERRUPTED, True), (137, False)])
def test_only_an_interrupted_job_queues_again(printed, ran, code, queues):
    returned, told = ran(printed(*RUN), code, SLURM_RESTART_COUNT="3")
    assert returned == code
    assert told[0].startswith("srun --kill-on-bad-exit=0 --wait=0 ")
    assert told[0].endswith("-m fedddp train --run.name=my run --run.rounds=2 [slurm-17 3]")
    assert told[1:] == (["scontrol requeue 17 [slurm-17 3]"] if queues else [])


def test_the_job_names_the_run_that_a_restart_continues(monkeypatch):
    task = {
        **{"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
        **{"SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "n1", "SLURM_STEP_TASKS_PER_NODE": "2"},
        **{"SLURM_RESTART_COUNT": "1", "TORCHELASTIC_RUN_ID": "slurm-17", "TORCHELASTIC_RESTART_COUNT": "1"},
    }
    for key, value in (task | srun_variables(task)).items():
        monkeypatch.setenv(key, value)
    place = Place.from_env()
    assert (place.launch, place.attempt, place.may_be_a_restart) == ("slurm-17", 1, True)
    assert place.gathered


SWEEP = """
[sweep]
nproc = 2
[base]
run.rounds = 1
[grid]
run.seed = [0, 1, 2]
"""


def test_a_sweep_is_an_array_of_its_runs(printed, ran, tmp_path):
    (tmp_path / "trial.toml").write_text(SWEEP)
    script = printed("sweep", "trial.toml", "--slurm", "--only=seed=[12]")
    assert {"--array=0-1", "--ntasks-per-node=2", "--output=trial-%A_%a.out"} < {*directives(script)}
    assert "--array=0-1%2" in directives(
        printed("sweep", "trial.toml", "--slurm", "--only=seed=[12]", "--sweep.jobs=2")
    )
    _, told = ran(script, 0, SLURM_ARRAY_TASK_ID="1")
    plan = tmp_path / told[0].split()[-3]
    assert 'name = "seed=2"' in plan.read_text()
    assert 'resume = "auto"' in plan.read_text()
    assert not (tmp_path / "runs" / "trial" / "table.md").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--slurm"], "--slurm: how many ranks a machine of the cluster has is not known here; add -n RANKS"),
        (["--slurm", "-n2", "--min-ranks=1"], "--min-ranks=1: not with --slurm, which starts ranks and queues again"),
        (["--slurm", "-n2", "--max-restarts=1"], "--max-restarts=1: not with --slurm"),
        (["--slurm", "-n2", "--nnodes=2", "--master=a:1"], "--master=a:1: not with --slurm"),
        (["--slurm", "-n2", "--nnodes=2", "--node-rank=0"], "--node-rank=0: not with --slurm"),
        (["--slurm", "-n2", "--join-timeout=60"], "--join-timeout=60.0: not with --slurm"),
        (["--slurm", "-n2", "--sbatch=time=1"], "--sbatch='time=1': should be one option, such as --sbatch=--time="),
        (["--slurm", "-n2", "--sbatch=--a\nrm"], "--sbatch='--a\\nrm': should be one option"),
        (["--slurm", "-n2", "--run.rounds=x"], "run.rounds='x'"),
        (["-n2", "--print"], "--print: goes with --slurm; add it, or leave --print out"),
        (["-n2", "--sbatch=--time=1"], "--sbatch: goes with --slurm"),
    ],
)
def test_what_is_refused(words, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["launch", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fedddp: {line}")
    assert said.count("\n") == 1
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """sbatch(answer, error, code): a program of that name, which keeps what it read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()

    def make(answer="", error="", code=0):
        path = tmp_path / "bin" / "sbatch"
        path.write_text(f"#!/bin/sh\ncat > {tmp_path}/read\necho '{answer}'\necho '{error}' >&2\nexit {code}\n")
        path.chmod(0o755)
        return tmp_path / "read"

    return make


def test_the_script_is_submitted(sbatch, capsys):
    read = sbatch("417;cluster")
    assert main(RUN) == 0
    assert capsys.readouterr().out == "job 417: 3 x 2 ranks; output in my-run-417.out, end it with: scancel 417\n"
    script = read.read_text()
    assert main([*RUN, "--print"]) == 0
    assert capsys.readouterr().out == script
    assert sys.executable in script


def test_what_sbatch_says_is_passed_on(sbatch, capsys):
    sbatch(error="sbatch: error: invalid partition specified: x", code=1)
    assert main(RUN) == 2
    assert capsys.readouterr().err.startswith("fedddp: --slurm: invalid partition specified: x; --sbatch=OPTION")


def test_without_sbatch(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(RUN) == 2
    assert "there is no sbatch here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--dry-run", "--print"], "--print: goes with --slurm"),
        (["--dry-run", "--slurm"], "--dry-run: not with --slurm, whose script --print shows"),
        (["--slurm", "--sweep.jobs=2"], "run.device='auto', 'cpu': all jobs of an array get the same GPUs"),
    ],
)
def test_what_is_refused_of_a_sweep(words, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trial.toml").write_text(SWEEP.replace("run.seed = [0, 1, 2]", 'run.device = ["cpu", "auto"]'))
    assert main(["sweep", "trial.toml", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fedddp: {line}")
    assert said.count("\n") == 1
    assert not [*tmp_path.glob("runs/*/plan/*")]
