"""launch/k8s and launch/skypilot.yaml: fields by the schemas of Kubernetes and Kubeflow, and what no schema sees.

Nothing here needs a cluster, and nothing here shows that a cluster runs them.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedddp.checkpoints.lock import GONE
from fedddp.cli.main import main
from fedddp.comm.interrupt import GRACE, LAST
from fedddp.errors import DONE, FAILED, INTERRUPTED, USAGE

yaml = pytest.importorskip("yaml")
kubernetes = pytest.importorskip("kubernetes_validate")
kubeflow = pytest.importorskip("kubeflow_trainer_api.models")

ROOT = Path(__file__).parents[2]
VERSIONS = ("1.31", "1.37")
"""Of Kubernetes: the first that has every field without a switch, and the last whose schemas are known."""


def documents(name: str) -> dict[str, Any]:
    """The documents of a file of launch/k8s, by their kinds."""
    return {one["kind"]: one for one in yaml.safe_load_all((ROOT / "launch/k8s" / name).read_text())}


FILES = sorted(path.name for path in (ROOT / "launch/k8s").iterdir())
BASE, PLAIN, TRAINER = map(documents, ("base.yaml", "indexed-job.yaml", "trainjob.yaml"))
SET = TRAINER["TrainingRuntime"]["spec"]["template"]["spec"]


@dataclass
class Job:
    """A job of one of the files, as machine 1 of it sees it: ``env`` has the variables that the cluster sets."""

    name: str
    spec: dict[str, Any]
    args: list[str]
    env: dict[str, str]
    pod: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.pod = self.spec["template"]["spec"]
        (self.container,) = self.pod["containers"]
        self.words = [re.sub(r"\$\((\w+)\)", lambda found: self.env[found[1]], word) for word in self.args]
        self.options = dict(word.split("=", 1) for word in self.words if "=" in word)

    def on_exit(self, code: int) -> list[tuple[str, str]]:
        """What the rules for an exit code do, and of which container."""
        rules = [rule for rule in self.spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
        found = [rule for rule in rules if code in rule["onExitCodes"]["values"]]
        return [(rule["action"], rule["onExitCodes"]["containerName"]) for rule in found]


def plain() -> Job:
    job = PLAIN["Job"]
    args = job["spec"]["template"]["spec"]["containers"][0]["args"]
    return Job(job["metadata"]["name"], job["spec"], args, {"JOB_COMPLETION_INDEX": "1"})


def of_trainer() -> Job:
    """The job of the runtime, with the words of the TrainJob and the variables of the Trainer's torch policy."""
    given, name = TRAINER["TrainJob"]["spec"]["trainer"], TRAINER["TrainJob"]["metadata"]["name"]
    env = {"NNODES": given["numNodes"], "NPROC_PER_NODE": given["numProcPerNode"], "NODE_RANK": 1}
    env |= {"MASTER_ADDR": f"{name}-node-0-0.{name}", "MASTER_PORT": 29500}
    pet = {f"PET_{key}": str(value) for key, value in env.items()}
    return Job(name, SET["replicatedJobs"][0]["template"]["spec"], given["args"], pet)


both = pytest.mark.parametrize("job", [plain(), of_trainer()], ids=["indexed-job", "trainjob"])


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in FILES for kind in documents(name)])
def test_every_field_is_one_of_its_kind(name, kind):
    found = documents(name)[kind]
    if found["apiVersion"] == "trainer.kubeflow.org/v1alpha1":
        model = getattr(kubeflow, f"TrainerV1alpha1{kind}")
        assert model.from_dict(found).to_dict() == found  # a field that the model does not know would be missing
        found = {"apiVersion": "batch/v1", "kind": "Job", "spec": of_trainer().spec}  # more strictly, for what is in it
    for version in VERSIONS:
        kubernetes.validate(found, version, strict=True)


@both
def test_fedddp_takes_the_words(job, capsys):
    assert main([*job.words, "--print-config"]) == DONE
    assert f'name = "{job.options["--run.name"]}"' in capsys.readouterr().out
    assert (job.words[0], job.options["--node-rank"], job.options["--nnodes"]) == ("launch", "1", "2")
    assert job.options["--run.resume"] == "auto"  # or a pod that is started again would begin anew


def test_the_machines_of_the_plain_job_find_the_first():
    job, service = plain(), PLAIN["Service"]
    assert job.spec["completions"] == job.spec["parallelism"] == int(job.options["--nnodes"])
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job.name}
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    assert job.pod["subdomain"] == service["metadata"]["name"]
    (port,) = service["spec"]["ports"]
    assert job.options["--master"] == f"{job.name}-0.{service['metadata']['name']}:{port['port']}"


def test_trainer_finds_the_runtime_and_the_container_that_gets_the_variables():
    runtime, job = TRAINER["TrainingRuntime"], TRAINER["TrainJob"]["spec"]
    assert (job["runtimeRef"]["kind"], job["runtimeRef"]["name"]) == (runtime["kind"], runtime["metadata"]["name"])
    assert job["trainer"]["numNodes"] == runtime["spec"]["mlPolicy"]["numNodes"]
    (node,) = SET["replicatedJobs"]
    assert node["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert (node["name"], of_trainer().container["name"]) == ("node", "node")
    assert of_trainer().name != plain().name  # its service has the name of the TrainJob


@both
def test_pods_have_the_network_the_volume_and_the_user(job):
    policy = BASE["NetworkPolicy"]["spec"]
    labels = policy["podSelector"]["matchLabels"]
    assert labels.items() <= job.spec["template"]["metadata"]["labels"].items()
    assert policy["ingress"] == [{"from": [{"podSelector": {"matchLabels": labels}}]}]
    (volume,) = [one for one in job.pod["volumes"] if "persistentVolumeClaim" in one]
    assert volume["persistentVolumeClaim"]["claimName"] == BASE["PersistentVolumeClaim"]["metadata"]["name"]
    assert {"name": volume["name"], "mountPath": job.options["--run.dir"]} in job.container["volumeMounts"]
    user = job.pod["securityContext"]["runAsUser"]
    assert f"useradd --create-home --uid {user} " in (ROOT / "Dockerfile").read_text()


@both
def test_ends_decide_on_another_try(job):
    name = job.container["name"]
    assert job.on_exit(USAGE) == [("FailJob", name)]
    assert job.on_exit(FAILED) == []  # counts as a try
    assert job.pod["restartPolicy"] == "Never"  # without which there are no such rules
    assert job.pod["terminationGracePeriodSeconds"] > max(GRACE + LAST, 30)  # the launcher kills ranks after 30 s
    if job.name == plain().name:
        assert job.on_exit(INTERRUPTED) == [("Ignore", name)]
    else:  # each end but the first is one of all pods
        assert job.spec["backoffLimit"] == 0
        (rule,) = SET["failurePolicy"]["rules"]
        assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


@both
def test_probes_read_the_heartbeat(job, tmp_path):
    index = next(key for key in job.env if key in ("JOB_COMPLETION_INDEX", "PET_NODE_RANK"))
    lock, container = tmp_path / job.options["--run.name"] / ".lock", tmp_path / "hosts"

    def passes(probe: str, machine: int = 0, **ages: float) -> bool:
        for path, seconds in {lock: ages.get("lock"), container: ages.get("container", 0.0)}.items():
            if seconds is not None:
                path.parent.mkdir(exist_ok=True)
                path.touch()
                os.utime(path, (time.time() - seconds,) * 2)
        words = job.container[probe]["exec"]["command"]
        words = [word.replace("/etc/hosts", str(container)) for word in words]
        words = [word.replace(job.options["--run.dir"], str(tmp_path)) for word in words]
        env = os.environ | {index: str(machine)}
        return subprocess.run(words, env=env, capture_output=True, timeout=60).returncode == 0

    assert not passes("startupProbe")
    assert passes("startupProbe", machine=1)  # it has no run folder of its own
    assert not passes("startupProbe", lock=30, container=20)  # left behind by the pod before
    assert passes("startupProbe", lock=30, container=60)
    assert passes("livenessProbe", lock=GONE - 70)
    assert not passes("livenessProbe", lock=GONE + 70)
    assert passes("livenessProbe", machine=1)


def test_fedddp_takes_the_words_of_skypilot(capsys):
    task = yaml.safe_load((ROOT / "launch/skypilot.yaml").read_text())
    env = {"SKYPILOT_NUM_NODES": str(task["num_nodes"]), "SKYPILOT_NODE_RANK": "1"}
    env |= {"SKYPILOT_NODE_IPS": "192.0.2.1\n192.0.2.2", **task["envs"]}
    script = task["run"].replace("~/fedddp/bin/fedddp", "printf '%s\\n'")
    ran = subprocess.run(["bash", "-euc", script], env=os.environ | env, capture_output=True, text=True, check=True)
    words = ran.stdout.splitlines()
    assert {"--nnodes=2", "--node-rank=1", "--master=192.0.2.1:29400", "--run.resume=auto"} <= {*words}
    assert main([*words, "--print-config"]) == DONE
