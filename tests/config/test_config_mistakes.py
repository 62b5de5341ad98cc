"""Every mistake in a configuration is one line that names the key, the value and what to do."""

import pytest

from fedddp.comm import Place
from fedddp.config import UsageError, build, parse
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve

SMALL = ("--data.name=synthetic", "--data.args={num_train = 20, num_test = 5}", "--model.name=mlp", "--run.threads=1")

MISTAKES = [
    ("--run.rounds=0", "run.rounds=0: should be greater than or equal to 1"),
    ("--run.rounds=2.5", "run.rounds=2.5: should be a valid integer"),
    ("--run.rounds=many", "run.rounds='many': should be a valid integer"),
    ("--run.round=5", "run.round: unknown key; did you mean 'rounds'?"),
    ("--run.xyz=5", "run.xyz: unknown key; the keys here are name, dir, seed, rounds"),
    ("--rnu.rounds=5", "rnu: unknown key; did you mean 'run'?"),
    ("--run.device=tpu", "run.device='tpu': should be 'auto', 'cpu' or 'cuda'"),
    ("--run=3", "run=3: expected a section; write run.<key>=value"),
    ("--data.args=3", "data.args=3: should be a valid dictionary"),
    ("--client.optimizer=3", "client.optimizer=3: expected a section"),
    ("--model=[1]", "model=[1]: expected a section"),
    ("--algorithm.server_optimizer=true", "algorithm.server_optimizer=True: expected a section"),
    (
        "--client.optimizer.name=[1]",
        "client.optimizer.name=[1]: should be 'sgd', 'adam', 'adamw', 'adagrad', 'yogi' or package.module:Class",
    ),
    ("--client.optimizer.name=sdg", "client.optimizer.name='sdg': should be 'sgd'", "did you mean 'sgd'?"),
    ("--client.optimizer.lr=-1", "client.optimizer.lr=-1: should be greater than 0"),
    ("--client.optimizer.lr=nan", "client.optimizer.lr=nan: should be a finite number"),
    ("--client.optimizer.momentun=1", "client.optimizer.momentun: unknown key; did you mean 'momentum'?"),
    ("--client.optimizer.xyz=1", "client.optimizer.xyz: unknown key; the keys here are lr, momentum"),
    ("--algorithm.server_optimizer.momentum=1", "algorithm.server_optimizer.momentum=1: should be less than 1"),
    ("--algorithm.server_optimizer.beta=1", "algorithm.server_optimizer.beta: unknown key"),
    ("--algorithm.name=fedag", "algorithm.name='fedag': should be 'fedavg'", "did you mean 'fedavg'?"),
    ("--algorithm.weighting=equal", "algorithm.weighting='equal': should be 'auto', 'examples', 'tokens' or 'uniform'"),
    ("--data.partition.alpha=1", "data.partition.alpha: unknown key; the keys here are num_clients"),
    ("--data.partition={name = 'dirichlet', alpha = 0}", "data.partition.alpha=0: should be greater than 0"),
    ("--model.name=nowhere:Net", "model.name='nowhere:Net': cannot be imported: no module 'nowhere'", "PYTHONPATH"),
    ("--model.name=torch.nn:Linea", "model.name='torch.nn:Linea': cannot be imported", "did you mean 'Linear'?"),
    ("--model={name = 'torch.nn:Linear', in_features = 3}", "model.name='torch.nn:Linear'", "'out_features'"),
    ("--algorithm.name=torch.nn:Linear", "algorithm.name='torch.nn:Linear': should name a dataclass"),
    ("--cohort.fraction=0", "cohort.fraction=0: should be greater than 0"),
    ("--run.rounds", "--run.rounds: has no value; write --run.rounds=value"),
    ("--halp", "--halp: unknown option", "did you mean '--help'?"),
    ("--print-confg", "--print-confg: unknown option", "did you mean '--print-config'?"),
    ("--lr", "--lr: has no value; write --client.optimizer.lr=value"),
    ("--epochs", "--epochs: has no value; write --client.local_epochs=value"),
    ("--model", "--model: has no value; write --model.name=value"),
    ("--alpha", "--alpha: unknown option", "did you mean 'data.partition.alpha'"),
    ("-lr=0.1", "-lr=0.1: unknown option", "did you mean '--lr=0.1'?"),
    ("-halp", "-halp: unknown option", "did you mean '--help'?"),
    ("run.rounds", "run.rounds: is a key, and needs a value; write --run.rounds=value"),
    ("lr", "lr: is a key, and needs a value; write --client.optimizer.lr=value"),
    ("conf.yaml", "conf.yaml: configurations are TOML", "--run.rounds=5"),
    ("--config x.toml", "--config: unknown option", "a TOML file is named by itself"),
    ("-c x.toml", "-c: unknown option", "a TOML file is named by itself"),
    ("--algo=fedprox", "algo: unknown key; did you mean 'algorithm'?"),
    ("--epoch=5", "epoch: unknown key; did you mean 'client.local_epochs'?"),
    ("robust", "robust: no such file; the configurations of this name are robust/backdoor_mean, "),
    ("mnist/fedavg_e6", "mnist/fedavg_e6: no such file; did you mean 'mnist/fedavg_e5'?", "fedddp show configs"),
    ("configs/mnist/fedavg_e6.toml", "configs/mnist/fedavg_e6.toml: no such file; did you mean 'mnist/fedavg_e5'?"),
    ("--config=configs/x.toml", "--config=configs/x.toml: unknown option", "a TOML file is named by itself"),
    ("no/such.toml", "no/such.toml: cannot be read (No such file or directory); give a TOML file"),
]


@pytest.mark.parametrize(("word", "expected"), [(word, expected) for word, *expected in MISTAKES])
def test_a_mistake_is_one_line_with_key_value_and_remedy(word, expected):
    with pytest.raises(UsageError) as error:
        build(*parse(word.split(" ") if ".toml" in word else [word]).layers)
    message = str(error.value)
    assert message.startswith(expected[0])
    assert all(part in message for part in expected)
    assert "\n" not in message


def test_the_first_mistake_is_told_and_the_others_are_counted():
    with pytest.raises(UsageError, match=r"^run.seed=-1: .* \(and 2 more\)$"):
        build(*parse(["--run.seed=-1", "--run.rounds=0", "--client.optimizer.lr=0"]).layers)


@pytest.mark.parametrize("content", [b"run = \n", b"run = {\xff}\n"])
def test_a_file_that_is_no_toml_is_named(tmp_path, content):
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"bad.toml: is not valid TOML: ") as error:
        build(*parse([str(tmp_path / "bad.toml")]).layers)
    assert "\n" not in str(error.value)


PREPARED = [
    ("--cohort.size=5", "cohort.size=5: exceeds the number of clients, which is 4; use at most 4"),
    ("--data.name=mnst", "data.name='mnst': should be one of mnist-mini, mnist, "),
    ("--data.name=nowhere:Data", "data.name='nowhere:Data': cannot be imported: no module 'nowhere'"),
    ("--data.args={num_trian = 5}", "data.args={", "num_trian"),
    ("--data.partition.num_clients=21", "data.partition.num_clients=21: 20 examples cannot give", "at most 20 clients"),
    ("--model={name = 'torch.nn:Linear', in_features = 3, out_features = 2}", "model.name='torch.nn", "[2, 1, 28, 28]"),
    ("--model={name = 'torch.nn:Flatten'}", "model.name='torch.nn", "no trainable parameter"),
    ("--model={name = 'torch.nn:PReLU'}", "model.name='torch.nn", "should give ", "gives [2, 1, 28, 28]"),
    ("--run.resume=no/such/run", "run.resume='no/such/run': is not a run folder"),
]


@pytest.mark.parametrize(("word", "expected"), [(word, expected) for word, *expected in PREPARED])
def test_what_needs_the_data_is_checked_before_anything_is_written(word, expected, tmp_path):
    words = [*SMALL, f"--run.dir={tmp_path / 'runs'}", "--data.partition.num_clients=4", word]
    with pytest.raises(UsageError) as error:
        prepare(resolve(build(*parse(words).layers), Place()), Place())
    assert all(part in str(error.value) for part in expected)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


NOT_WRITABLE = {
    "proc": ("/proc/x", "trial"),
    "sys": ("/sys/x/y", "trial"),
    "under a device": ("/dev/null/runs", "trial"),
    "under a file": ("{tmp}/file/runs", "trial"),
    "a folder of 300 letters": ("{tmp}/" + 300 * "d" + "/runs", "trial"),
}


@pytest.mark.parametrize("case", NOT_WRITABLE)
def test_a_run_folder_that_cannot_be_written_is_refused(case, tmp_path):
    (tmp_path / "file").touch()
    folder, name = (word.format(tmp=tmp_path) for word in NOT_WRITABLE[case])
    words = [*SMALL, f"--run.dir={folder}", f"--run.name={name}"]
    with pytest.raises(UsageError, match=f"run.dir='{folder}', run.name='{name}': .*; choose another folder"):
        prepare(resolve(build(*parse(words).layers), Place()), Place())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_depends_on_the_ranks_is_filled_in():
    config = resolve(build({"model": {"name": "mlp"}}), Place(world_size=3, local_world_size=3))
    assert config.data.partition.num_clients == 3
    assert config.run.name == "fedavg-mnist-mini-mlp"
    assert config.run.threads >= 1
    exact = resolve(build({"aggregation": {"sum": "exact"}}), Place())
    assert exact.run.threads == 1


@pytest.mark.parametrize(
    ("cohort", "size"), [({}, 40), ({"fraction": 0.1}, 4), ({"fraction": 0.001}, 1), ({"size": 7}, 7)]
)
def test_the_cohort_is_a_share_a_number_or_everybody(cohort, size):
    config = resolve(build({"cohort": cohort, "data": {"partition": {"num_clients": 40}}}), Place())
    assert config.cohort_size == size
