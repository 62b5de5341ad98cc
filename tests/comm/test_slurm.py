"""What srun's variables say of a rank."""

import pytest

from fedddp.comm.slurm import expanded, srun_variables
from fedddp.comm.world import Place
from fedddp.errors import UsageError

TASK = {
    "SLURM_JOB_ID": "417",
    "SLURM_NTASKS": "5",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_NODELIST": "gpu[01-02,7]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
}


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("login", ["login"]),
        ("a,b-1", ["a", "b-1"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("r[1-2]n[09-10]", ["r1n09", "r1n10", "r2n09", "r2n10"]),
        ("n[098-101]-ib", ["n098-ib", "n099-ib", "n100-ib", "n101-ib"]),
    ],
)
def test_host_lists(hosts, expected):
    assert expanded(hosts) == expected


def test_a_task_is_a_rank():
    found = srun_variables(TASK)
    assert (found["RANK"], found["WORLD_SIZE"]) == ("3", "5")
    assert (found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == ("1", "2")
    assert found["MASTER_ADDR"] == "gpu01"
    assert srun_variables({**TASK, "SLURM_PROCID": "0", "SLURM_NODEID": "0"})["MASTER_PORT"] == found["MASTER_PORT"]
    assert srun_variables({**TASK, "MASTER_ADDR": "10.0.0.1"})["MASTER_ADDR"] == "10.0.0.1"
    last = srun_variables({**TASK, "SLURM_PROCID": "4", "SLURM_NODEID": "2", "SLURM_LOCALID": "0"})
    assert last["LOCAL_WORLD_SIZE"] == "1"


def test_a_requeued_job_continues_its_run(monkeypatch):
    for key, value in srun_variables({**TASK, "SLURM_RESTART_COUNT": "1"}).items():
        monkeypatch.setenv(key, value)
    place = Place.from_env()
    assert place.may_be_a_restart
    assert place.launch == place.job == "slurm-417.0"


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script
        {**TASK, "SLURM_STEP_NUM_TASKS": "1"},
        {**TASK, "WORLD_SIZE": "8"},  # torchrun as the task
    ],
)
def test_what_is_no_rank_of_srun(env):
    assert srun_variables(env) == {}


@pytest.mark.parametrize(
    "broken", [{"SLURM_STEP_TASKS_PER_NODE": "2"}, {"SLURM_STEP_NODELIST": ""}, {"SLURM_JOB_ID": "x"}]
)
def test_what_cannot_be_understood_is_refused_in_a_line(broken):
    with pytest.raises(UsageError, match="srun started 5 tasks, but its variables say not where") as refused:
        srun_variables({**TASK, **broken})
    assert "\n" not in str(refused.value)
