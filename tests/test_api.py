"""fedddp in a script or a notebook: the program's own runs, objects of one's own, and nothing left behind."""

import functools
import gc
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import fedddp
from fedddp import Dataset, Examples, Partition, Task, UsageError, federate
from fedddp.algorithms import FedAvg
from fedddp.comm.guard import OBJECTS
from fedddp.errors import NothingLearned
from fedddp.flat import flatten
from fedddp.models import MLP
from fedddp.optim import SGD
from fedddp.train import main
from tests.helpers.waiting import until

QUIET = {
    "data": {"name": "synthetic", "args": {"num_train": 120, "num_test": 40}, "partition.num_clients": 3},
    "telemetry": {"tensorboard": False, "progress": "off"},
    "checkpoint.every": 0,
}


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x):
        return self.body(x)


@pytest.fixture
def run(tmp_path):
    """fedddp.run on little data, quietly."""
    return functools.partial(fedddp.run, QUIET, dir=str(tmp_path), threads=1)


def own_dataset():
    stream = torch.Generator().manual_seed(5)
    x = torch.randn(60, 2, 3, generator=stream)
    return Dataset.of((x, (x.sum((1, 2)) > 0).long()), (x[:20], (x[:20].sum((1, 2)) > 0).long()))


def test_a_run_is_the_programs_run(run, tmp_path):
    words = [
        "--model.name=mlp",
        "--model.hidden=4",
        "--run.rounds=2",
        "--client.optimizer.lr=0.05",
        "--run.name=program",
    ]
    words += ["--data.name=synthetic", "--data.args={num_train=120, num_test=40}", "--data.partition.num_clients=3"]
    words += ["--telemetry.tensorboard=false", "--telemetry.progress=off", f"--run.dir={tmp_path}", "--run.threads=1"]
    assert main(words) == 0
    with_names = run({"client.optimizer.lr": 0.05}, rounds=2, model={"name": "mlp", "hidden": 4})
    with_objects = run(client={"optimizer": SGD(lr=0.05)}, rounds=2, model=MLP(hidden=4), algorithm=FedAvg)
    program = json.loads((tmp_path / "program" / "summary.json").read_text())
    for result in (with_names, with_objects):
        assert result.summary["model_sha256"] == program["model_sha256"]
        assert json.loads((result.folder / "summary.json").read_text()) == result.summary
        assert [m["round"] for m in result.history] == [1, 2]
    assert "rounds=2" in repr(with_names)


def test_a_file_and_keywords_merge_left_to_right(run, tmp_path):
    (tmp_path / "base.toml").write_text("run.rounds = 5\nmodel = {name = 'mlp', hidden = 7}\nclient.local_epochs = 2\n")
    result = run(tmp_path / "base.toml", {"client": {"local_epochs": 1}}, rounds=1, model={"hidden": 3}, name="merged")
    config = (tmp_path / "merged" / "config.toml").read_text()
    assert result.summary["rounds"] == 1
    assert "hidden = 3" in config
    assert "local_epochs = 1" in config


@pytest.fixture
def surroundings():
    """What a run could change in the process around it."""

    def look():
        gc.collect()
        return {
            "threads": {t.name for t in threading.enumerate()},
            "torch threads": torch.get_num_threads(),
            "handlers": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
            "wakeup": signal.set_wakeup_fd(-1),
            "torch": torch.get_rng_state().tolist(),
            "numpy": np.random.get_state()[1].tolist(),
            "random": random.getstate(),
            "loggers": [list(logging.getLogger(name).handlers) for name in ("fedddp", "")],
            "warnings": list(warnings.filters),
            "all_reduce": dist.all_reduce,
            "group": dist.is_initialized(),
            "grad": torch.is_grad_enabled(),
            "dtype": torch.get_default_dtype(),
            "object functions": [getattr(dist, name) for name in OBJECTS],
        }

    return look


def test_nothing_is_left_behind(run, surroundings):
    run(rounds=1, model=Net)  # what is imported once, is
    torch.set_num_threads(2)
    before = surroundings()
    run(rounds=2, model=Net, privacy={"guard": True}, telemetry={"tensorboard": True, "progress": "lines"})
    with pytest.raises(UsageError):
        run(rounds=-1)
    with pytest.raises(UsageError):
        run(rounds=1, cohort={"size": 100})
    after = surroundings()
    torch.set_num_threads(1)
    assert not after.pop("threads") - before.pop("threads")
    assert {k: v for k, v in after.items() if v != before[k]} == {}


@pytest.mark.slow
def test_runs_leave_no_open_file_and_no_thread(run):
    """The first run opens what the process keeps: imported libraries, torch's own threads."""

    def left():
        gc.collect()
        links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
        files = [os.readlink(link) for link in links if os.path.lexists(link)]
        fonts = [file for file in files if file.endswith(".ttf")]  # matplotlib keeps a bounded number of them open
        return sorted(set(files) - set(fonts)), len(files) - len(fonts), [t.name for t in threading.enumerate()]

    def one(**sections):
        run(rounds=1, model=Net, privacy={"guard": True}, telemetry={"tensorboard": True}, **sections)

    one()
    before = left()
    for _ in range(3):
        one()
    for broken in ({"cohort": {"size": 100}}, {"algorithm": {"name": "faulty:Faulty", "client": -1}}):
        with pytest.raises((UsageError, NothingLearned)):
            one(**broken)
    with pytest.raises(KeyboardInterrupt):
        one(sinks=[Stop(after=1)])
    until(lambda: left() == before)  # a writing thread ends soon after its run


def test_the_import_alone_costs_nothing():
    code = (
        "import sys, fedddp; assert 'run' in dir(fedddp); sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_name_that_is_promised_is_there():
    assert all(getattr(fedddp, name) is not None for name in fedddp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        fedddp.nonsense  # noqa: B018


def test_data_and_who_owns_them_can_be_objects(run, tmp_path):
    owners = [range(0, 10), [59, 10, 11], range(20, 50)]
    lists = run(rounds=2, dataset=own_dataset(), partition=owners, model="logistic", data={"partition.num_clients": 3})
    dealt = Partition.dealt(np.concatenate(owners), np.array([10, 3, 30]))
    arrays = run(rounds=2, dataset=own_dataset(), partition=dealt, model="logistic")
    assert torch.equal(lists.w, arrays.w)
    assert [m["examples"] for m in lists.history] == [43, 43]
    drawn = run(rounds=1, dataset=own_dataset(), model="logistic", data={"partition": {"name": "shards"}})
    assert drawn.history[0]["examples"] == 60
    assert 'name = "given"' in (drawn.folder / "config.toml").read_text()


def test_arrays_pairs_and_examples_make_the_same_dataset():
    x, y = np.arange(5 * 8 * 8, dtype=np.uint8).reshape(5, 8, 8), np.array([0, 1, 2, 1, 0])
    examples = Examples(torch.from_numpy(x).unsqueeze(1), torch.from_numpy(y))
    for part in ((x, y), examples, [(image, int(label)) for image, label in zip(x, y, strict=True)]):
        data = Dataset.of(part, part)
        assert torch.equal(data.train.x, examples.x)
        assert torch.equal(data.test.y, examples.y)
        assert data.num_classes == 3
        assert data.mean == pytest.approx((x.mean() / 255,))


@pytest.mark.parametrize("model", [Net, Net(), functools.partial(Net, width=5), lambda: Net(3)])
def test_a_model_can_be_a_class_a_function_or_a_module(run, model):
    result = run(rounds=1, model=model)
    assert isinstance(result.module, Net)
    x = torch.randn(3, 1, 28, 28)
    assert result.module(x).shape == (3, 10)
    assert torch.equal(flatten(result.module), result.w)


def test_training_starts_from_the_module_given_and_leaves_it_alone(tmp_path):
    module = Net()
    before = flatten(module)
    experiment = fedddp.assemble(QUIET, dir=str(tmp_path), model=module, rounds=1)
    assert torch.equal(experiment.server.w, before)
    assert not torch.equal(federate(experiment.federation, experiment.server).w, before)
    assert torch.equal(flatten(module), before)
    experiment.close()


def test_a_loss_twice_as_large_at_half_the_rate_is_the_same(run):
    """Powers of two: exact."""

    class Doubled(Task):
        def loss(self, outputs, y):
            return 2 * super().loss(outputs, y)

    plain = run(rounds=2, model=Net, client={"optimizer.lr": 0.125})
    doubled = run(rounds=2, task=Doubled(Net, 10), client={"optimizer.lr": 0.0625})
    assert torch.equal(plain.w, doubled.w)
    assert not torch.equal(plain.w, run(rounds=2, task=Doubled(Net, 10), client={"optimizer.lr": 0.125}).w)


def test_the_module_has_the_constants_that_the_run_drew(run):
    """Random features are in no vector: they follow from the seed."""
    result = run(rounds=1, seed=3, model={"name": "svm", "features": 20})
    assert torch.equal(result.module[0].weight, result.task.model(3)[0].weight)
    assert not torch.equal(result.module[0].weight, result.task.model(0)[0].weight)


def test_the_guard_lets_many_classes_be_evaluated(run):
    y = torch.arange(240) % 120
    many = Dataset.of((torch.randn(240, 4), y), (torch.randn(120, 4), y[:120]))
    assert many.num_classes == 120
    assert run(rounds=1, dataset=many, model="logistic", privacy={"guard": True}).summary["rounds"] == 1


def test_clients_of_a_task_of_ones_own_are_scored_by_it(run):
    class Named(Task):
        def outputs(self, module, x, y):
            return module(pictures=x)

    class Wordy(Net):
        def forward(self, *, pictures):
            return self.body(pictures)

    evaluate = {"holdout": 0.25, "personal_every": 1}
    for algorithm in ("qffl", "ifca"):
        result = run(rounds=1, task=Named(Wordy, 10), evaluate=evaluate, algorithm=algorithm)
        assert result.history[0]["failures"] == 0
        assert 0 <= result.history[0]["personal_accuracy_mean"] <= 1


def test_rounds_by_hand_are_the_rounds_of_a_run(run, tmp_path):
    whole = run(rounds=3, model=Net)
    torch.set_num_threads(1)
    experiment = fedddp.assemble(QUIET, dir=str(tmp_path), threads=1, rounds=3, model=Net)
    server = experiment.server
    for rounds in (1, 2, 3):
        server = federate(experiment.federation.until(rounds), server)
        told = experiment.federation.telemetry.history[-1]
        assert (told["round"], told["test_accuracy"]) == (rounds, whole.history[rounds - 1]["test_accuracy"])
    assert torch.equal(server.w, whole.w)
    experiment.close()


class Stop:
    """A sink that presses Ctrl-C after a round."""

    def __init__(self, after):
        self.after = after

    def round(self, record):
        if record.metrics["round"] == self.after:
            raise KeyboardInterrupt

    def close(self, summary):
        self.closed = summary


def test_ctrl_c_leaves_a_run_that_goes_on_to_the_same_model(run, tmp_path):
    whole = run(rounds=4, model=Net)
    stop = Stop(after=3)
    with pytest.raises(KeyboardInterrupt):
        run(rounds=4, model=Net, name="cut", sinks=[stop])
    assert stop.closed is None
    status = json.loads((tmp_path / "cut" / "status.json").read_text())
    assert (status["state"], status["round"]) == ("interrupted", 2)  # the third was not finished
    resumed = run(rounds=4, model=Net, name="cut", resume="auto")
    assert resumed.summary["model_sha256"] == whole.summary["model_sha256"]
    assert [m["round"] for m in resumed.history] == [1, 2, 3, 4]


def test_a_run_in_which_everybody_fails_raises_and_says_so(run, tmp_path):
    with pytest.raises(NothingLearned):
        run(rounds=1, model=Net, name="bad", algorithm={"name": "faulty:Faulty", "client": -1})
    assert json.loads((tmp_path / "bad" / "status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize(
    ("keywords", "line"),
    [
        ({"rouds": 3}, "rouds: unknown keyword; did you mean 'rounds'?"),
        ({"zzz": 3}, "zzz: unknown keyword; the sections are run, data, model"),
        ({"model": "resmet"}, "model.name='resmet': should be 'cnn'"),
        ({"algorithm": 3}, "algorithm=3: expected a section; write its name as .name=3"),
        ({"task": Task(Net, 10), "model": Net}, "model, task: a task makes its own model; give one of them"),
        ({"partition": [[0], [1]], "rounds": 1}, "data.partition.num_clients=3: the partition given has 2 clients"),
        ({"dataset": own_dataset(), "data": {"partition.num_clients": 61}}, "60 examples cannot give 61 clients"),
    ],
)
def test_a_mistake_is_one_line_and_makes_nothing(run, tmp_path, keywords, line):
    with pytest.raises(UsageError) as caught:
        run(**keywords)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_assembled_run_keeps_its_threads_until_it_is_closed(tmp_path, threads):
    before = torch.get_num_threads()
    experiment = fedddp.assemble(QUIET, dir=str(tmp_path), threads=threads, model="logistic")
    assert torch.get_num_threads() == threads
    federate(experiment.federation.until(1), experiment.server)
    assert torch.get_num_threads() == threads
    experiment.close()
    assert torch.get_num_threads() == before
