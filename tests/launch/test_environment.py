"""What a program takes from where it is started: the launcher, the home folder, the locale, the path of imports."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fedddp
from fedddp.comm import Comm
from fedddp.comm.world import Place
from fedddp.train import main
from tests.helpers.commands import command

SMALL = [
    *("--run.name=trial", "--run.rounds=1", "--run.threads=1", "--run.device=cpu", "--telemetry.tensorboard=false"),
    *("--data.name=synthetic", "--data.args={num_train=60, num_test=20}", "--model.name=mlp", "--model.hidden=8"),
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def lines(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("fedddp")]


ALONE = "trains alone, a run of its own"
TASKS = {
    "mpirun": ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, True),
    "mpiexec": ({"PMI_SIZE": "3", "PMI_RANK": "2"}, True),
    "a batch script": ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, False),
    "a shell in an allocation": ({"SLURM_NTASKS": "8"}, False),
    "srun with torchrun": ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "WORLD_SIZE": "1", "RANK": "0"}, False),
}


@pytest.mark.parametrize("case", TASKS)
def test_tasks_that_do_not_know_of_each_other_are_warned(case, monkeypatch, capsys):
    environment, warned = TASKS[case]
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert main(SMALL) == 0
    told = [line for line in lines(capsys) if ALONE in line]
    assert len(told) == warned
    assert all(f"{key}={environment[key]}" in line for line in told for key in list(environment)[:1])


PLACES = {
    "no address": ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29500"}, "WORLD_SIZE=2: MASTER_ADDR not set"),
    "no port": ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "WORLD_SIZE=2: MASTER_PORT not set"),
    "no rank": ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2: RANK, MASTER_ADDR, MASTER_PORT not set"),
    "rank beyond": ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "RANK=2: "),
    "a port that is none": (
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "x"},
        "MASTER_PORT='x'",
    ),
    "a rank that is none": ({"WORLD_SIZE": "2", "RANK": "first"}, "RANK='first'"),
    "a size that is none": ({"WORLD_SIZE": "-2"}, "WORLD_SIZE='-2'"),
}


@pytest.mark.parametrize("case", PLACES)
def test_ranks_that_cannot_find_each_other_are_one_line(case, monkeypatch, capsys):
    monkeypatch.setattr("fedddp.cli.outcome.leave", lambda code: None)
    monkeypatch.setattr("fedddp.cli.outcome.time", SimpleNamespace(sleep=lambda seconds: None))
    for key, value in PLACES[case][0].items():
        monkeypatch.setenv(key, value)
    assert main(SMALL) == 2
    (line,) = lines(capsys)
    assert PLACES[case][1] in line
    assert [path.name for path in Path().iterdir()] == ["home"]
    if len(PLACES[case][0]) > 1:
        with pytest.raises(fedddp.UsageError):
            Comm.connect(Place.from_env(), torch.device("cpu"))


def test_the_home_is_the_home_in_every_path(capsys):
    home = Path("home")
    (home / "small.toml").write_text('[run]\nrounds = 2\ndir = "~/fedruns"\n')
    partition = "--data.partition.name=file", "--data.partition.path=~/two.json"
    (home / "two.json").write_text(json.dumps([list(range(30)), list(range(30, 60))]))
    assert main([*SMALL[:1], *SMALL[2:], "~/small.toml", *partition, "--data.root=~/digits"]) == 0
    run = home / "fedruns" / "trial"
    assert (run / "summary.json").exists()
    assert f'root = "{home.absolute()}/digits"' in (run / "config.toml").read_text()
    again = [*SMALL, "~/small.toml", *partition, "--run.rounds=3", "--run.resume=~/fedruns/trial"]
    assert main(again) == 0
    assert json.loads((run / "summary.json").read_text())["rounds"] == 3
    weights = "--model.weights=~/fedruns/trial/model.safetensors"
    assert main([*SMALL, weights, "--run.dir=~/other"]) == 0
    assert command("plot")(["~/fedruns/trial", "--out=~/curves.png"]) == 0
    assert command("show")([*SMALL, "--data.partition.num_clients=3", "--out=~/who.png", "--save=~/who.csv"]) == 0
    assert {"curves.png", "who.png", "who.csv"} <= {path.name for path in home.iterdir()}
    words = "--privacy.secure_aggregation.enabled=true", "--privacy.secure_aggregation.roster=~/none.toml"
    capsys.readouterr()
    (home / "grid.toml").write_text('[sweep]\nfiles = ["~/small.toml"]\ndir = "~/sweeps"\n[grid]\n"run.seed" = [0]\n')
    assert command("sweep")(["~/grid.toml", "--dry-run", *SMALL[2:]]) == 0
    assert main([*SMALL, *words, "--privacy.secure_aggregation.key=~/none.key"]) == 2
    assert not Path("~").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_files_may_begin_with_a_byte_order_mark(encoding, capsys):
    Path("one.toml").write_text("[run]\r\nrounds = 1\r\n", encoding=encoding, newline="")
    Path("two.json").write_text(json.dumps([list(range(30)), list(range(30, 60))]), encoding=encoding)
    rows = "".join(f"{k % 2},{k}\n" for k in range(60))
    Path("two.csv").write_text(f"client,example\n{rows}", encoding=encoding)
    for name in ("two.json", "two.csv"):
        words = [*SMALL, "one.toml", "--data.partition.name=file", f"--data.partition.path={name}"]
        assert main(words) == 0, capsys.readouterr().err


def test_files_are_utf_8_whatever_the_locale():
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    Path("text.toml").write_text('[data]\nroot = "d\u00e9j\u00e0 vu \u2713"\n', encoding="utf-8")
    words = [sys.executable, "-m", "fedddp.train", *SMALL, "text.toml"]
    ended = subprocess.run(words, env=environment, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    config = Path("runs/trial/config.toml")
    text = config.read_text(encoding="utf-8")
    assert 'root = "d\u00e9j\u00e0 vu \u2713"' in text
    again = [*words, "--run.rounds=2", "--run.resume=auto", "--data.root=d\u00e9j\u00e0 vu \u2713"]
    assert subprocess.run(again, env=environment, capture_output=True).returncode == 0
    assert Path("runs/trial/config.toml").read_text(encoding="utf-8") == text.replace(
        "rounds = 1", "rounds = 2"
    ).replace('resume = "never"', 'resume = "auto"')


def test_no_text_file_is_opened_in_the_encoding_of_the_locale():
    found = []
    for path in Path(fedddp.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                modes = [a.value for a in call.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                opens = call.func.attr == "open" and (not call.args or (modes and set(modes[0]) <= set("rwax+")))
                named = {keyword.arg for keyword in call.keywords}
                positional = call.func.attr == "read_text" and call.args
                if (
                    (opens or call.func.attr in ("read_text", "write_text"))
                    and "encoding" not in named
                    and not positional
                ):
                    found.append(f"{path.name}:{call.lineno}")
    assert found == []


NET = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 10))
"""


@pytest.mark.parametrize("how", ["script", "module", "safe path"])
def test_the_console_script_finds_modules_where_it_is_started(how):
    Path("mine").mkdir()
    Path("mine/net.py").write_text(NET)
    Path("bin").mkdir()
    Path("bin/fedddp").write_text("import sys\nfrom fedddp.train import main\nsys.exit(main())\n")
    command = {"script": ["bin/fedddp"], "module": ["-m", "fedddp.train"], "safe path": ["-P", "bin/fedddp"]}[how]
    words = [sys.executable, *command, *SMALL[:-2], "--model.name=mine.net:Net"]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == (2 if how == "safe path" else 0), ended.stderr


def test_folders_of_the_users_shadow_nothing():
    """A folder in which the program starts may have packages named as folders of the repository."""
    root = Path(fedddp.__file__).parents[1]
    names = {path.name for path in root.iterdir() if path.is_dir()} - {"fedddp"}
    names |= {path.stem for path in Path(fedddp.__file__).parent.iterdir() if not path.name.startswith("__")}
    assert {"launch", "tests", "configs", "config", "data", "types"} <= names
    for name in names - {"types"}:  # a standard module's name: Python itself would import that one
        Path(name).mkdir()
        Path(name, "__init__.py").write_text(f"raise ImportError('of the user: {name}')\n")
    ended = subprocess.run([sys.executable, "-m", "fedddp.train", *SMALL], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(Path("runs/trial/status.json").read_text())["state"] == "done"


@pytest.mark.parametrize(("clients", "said"), [(0, 1), (1, 1), (2, 0), (10, 0)])
def test_one_client_is_said_to_federate_nothing(clients, said, capsys):
    assert main([*SMALL, f"--data.partition.num_clients={clients}"]) == 0
    assert len([line for line in lines(capsys) if "nothing is federated" in line]) == said


@pytest.mark.parametrize(
    ("words", "at_once"),
    [
        (["--data.partition.num_clients=10"], 10),
        (["--data.partition.num_clients=10", "--cohort.size=3"], 3),
        (["--data.partition.num_clients=20", "--cohort.fraction=0.5"], 10),
        (["--data.partition.num_clients=60"], 60),
    ],
)
def test_no_more_clients_are_said_to_train_at_once_than_a_round_has(words, at_once, capsys):
    assert main([*SMALL, *words]) == 0
    assert len([line for line in lines(capsys) if f"vectorized: {at_once} clients at once" in line]) == 1


TORCHVISION = {
    "__init__.py": "from . import _meta_registrations\n",
    "_meta_registrations.py": "import torch\n\n"
    '@torch.library.register_fake("torchvision::nms")\ndef nms(x):\n    return x\n',
    "models.py": NET,
}
USERS = {
    "the class itself": ("torchvision.models:Net", ""),
    "imported with the module": ("own:Net", "import torchvision\nfrom torchvision.models import Net\n"),
    "imported when it is made": (
        "own:make",
        "from torch import nn\ndef make() -> nn.Module:\n    from torchvision.models import Net\n    return Net()\n",
    ),
    "a try in between": ("own:Net", f"try:\n    import torchvision\nexcept ImportError:\n    pass\n{NET}"),
}


@pytest.fixture
def unfit_torchvision(elsewhere):
    """A stand-in that fails as a torchvision does which was built for another torch."""
    Path("torchvision").mkdir()
    for name, text in TORCHVISION.items():
        Path("torchvision", name).write_text(text)


@pytest.mark.usefixtures("unfit_torchvision")
def test_torchvision_without_its_operators_cannot_be_imported_alone():
    bare = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    assert "operator torchvision::nms does not exist" in bare.stderr


@pytest.mark.usefixtures("unfit_torchvision")
@pytest.mark.parametrize("case", USERS)
def test_torchvision_without_its_operators_can_be_imported_by_users_modules(case):
    model, module = USERS[case]
    Path("own.py").write_text(module)
    words = [sys.executable, "-m", "fedddp.train", *SMALL[:-2], f"--model.name={model}"]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
