"""fedddp: commands are found, described and run; one place turns what goes wrong into a line and an exit code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedddp
from fedddp import UsageError
from fedddp.checkpoints.durable import WriteError
from fedddp.cli import commands, demo, help
from fedddp.cli.commands import COMMANDS
from fedddp.cli.main import main
from fedddp.cli.outcome import ended
from fedddp.comm import CommError, interrupt
from fedddp.comm.interrupt import Interrupted
from fedddp.errors import NothingLearned
from fedddp.secure.identity import IdentityError

PACKAGE = Path(fedddp.__file__).parent
TORCHLESS = """
import sys
from fedddp.cli.main import main
for words in {words}:
    assert main(words) == 0, words
    heavy = {{"torch", "pydantic", "numpy"}} & sys.modules.keys()
    assert not heavy, (words, heavy)
"""


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


def told(capsys):
    return capsys.readouterr().out.splitlines()


def test_help_version_schema_and_completion_do_not_import_torch():
    """Looked up among the modules that a process has, since a clock would say little on a busy machine."""
    ask = [[], ["--help"], ["-h"], ["--version"], ["help"], ["help", "model"], ["help", "algorithm.scaffold"]]
    ask += [["help", "run.rounds"], ["train", "--help"], ["train", "--version"], ["train", "--help", "model"]]
    ask += [[*name.split(), "--help"] for name in COMMANDS] + [["show", "configs"], ["schema"]]
    ask += [["completion", "bash"], ["completion", "zsh"], ["completion", "words", "fedddp train --model="]]
    command = [sys.executable, "-c", TORCHLESS.format(words=ask)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_fedddp_alone_lists_the_commands(capsys):
    assert main([]) == 0
    lines = told(capsys)
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    for name, command in COMMANDS.items():
        assert f"  {name:14}{command.about}" in lines
    assert any(line.startswith("  fedddp train ") for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_the_version(name, capsys):
    for flag in ("-h", "--help"):
        assert main([*name.split(), flag]) == 0
        lines = told(capsys)
        assert lines[0].startswith(f"usage: fedddp {name}")
        assert max(map(len, lines)) <= 100
    assert main(["help", *name.split()]) == 0
    assert told(capsys) == lines
    assert main([*name.split(), "--version"]) == 0
    assert told(capsys) == [f"fedddp {fedddp.__version__}"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "trian: unknown command; did you mean 'train'?"),
        (["--rounds=5"], "--rounds=5: a command comes first; did you mean fedddp train --rounds=5?"),
        (["run.toml", "x"], "run.toml: a command comes first; did you mean fedddp train run.toml x?"),
        (["plot"], "fedddp plot: the following arguments are required: RUN"),
        (["plot", "runs/a", "--targt=1"], "--targt=1: fedddp plot takes no such argument; did you mean '--target'?"),
        (["launch", "--min-rank=1"], "--min-rank: unknown option; did you mean '--min-ranks'?"),
        (["keygen", "--parties=two", "--out=x"], "fedddp keygen: argument --parties: 'two' should be a whole number"),
        (["help", "modle"], "modle: unknown topic; did you mean 'model'?"),
        (["help", "algorithm.scafold"], "algorithm.scafold: unknown topic; did you mean 'algorithm.scaffold'?"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(words, expected, capsys):
    assert main(words) == 2
    line, newline, rest = capsys.readouterr().err.partition("\n")
    assert line.startswith(f"fedddp: {expected}")
    assert (newline, rest) == ("\n", "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("run.rounds=0: is too few"), 2),
        (CommError("rank 1 is missing"), 1),
        (NothingLearned("every client failed"), 1),
        (WriteError("the disk is full"), 1),
        (IdentityError("is not a key"), 1),
        (Interrupted("SIGTERM"), 75),
        (KeyboardInterrupt(), 75),
    ],
)
def test_what_is_expected_to_go_wrong_is_a_line_and_an_exit_code(error, code, capsys):
    def run():
        raise error

    assert ended(run) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert str(error) in err


def test_what_is_not_expected_is_a_traceback_and_exit_code_1(capsys):
    assert ended(lambda: [][1]) == 1
    assert "IndexError" in capsys.readouterr().err
    assert ended(lambda: None) == 0
    assert ended(lambda: 1) == 1


def test_a_command_that_looks_for_requests_is_not_ended_by_a_signal():
    """In the block SIGINT is a request, which `check` raises at a safe point."""

    def run():
        interrupt.request("SIGINT")
        interrupt.check()

    assert ended(run, stops=True) == 75


def test_no_command_handles_errors_or_exits_by_itself():
    """Nor do the programs that are started in other ways: they are commands."""
    found = []
    files = {*(PACKAGE / "cli").rglob("*.py"), PACKAGE / "train.py", PACKAGE / "__main__.py"}
    for path in files - {PACKAGE / "cli" / "doctor" / "probe.py"}:  # whose ranks tell a process what went wrong
        for node in ast.walk(ast.parse(path.read_text())):
            caught = node.type if isinstance(node, ast.ExceptHandler) else None
            if isinstance(caught, ast.Name) and caught.id in ("Exception", "BaseException", "CommError", "WriteError"):
                found.append(f"{path.name}: except {caught.id}")
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("traceback.print_exc", "logging.basicConfig"):
                found.append(f"{path.name}: {ast.unparse(node)}")
    assert sorted(found) == ["outcome.py: except Exception", "outcome.py: traceback.print_exc"]


def test_one_rank_of_several_answers(monkeypatch, capsys):
    for rank, lines in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        assert main(["train", "--version"]) == 0
        assert len(told(capsys)) == lines


def test_demonstrations_are_left_out_with_a_reason_where_there_are_none(monkeypatch, tmp_path, capsys):
    for module in (commands, help, demo):
        monkeypatch.setattr(module, "EXAMPLES", tmp_path / "examples")
    assert main([]) == 0
    (line,) = (line for line in told(capsys) if line.startswith("  demo "))
    assert "in the repository, not in the installed package" in line
    assert main(["demo", "inversion"]) == 2
    assert "clone the repository" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["inversion", "matching", "membership"])
def test_a_demonstration_is_the_program_in_examples(name, monkeypatch, capsys):
    given = []
    monkeypatch.setattr(f"examples.privacy.{name}.main", lambda words: given.append(words) or 0)
    assert main(["demo", name, "--seed=5", "--out", "x"]) == 0
    assert given == [["--seed=5", "--out", "x"]]


def test_configurations_that_come_with_the_package_are_listed_with_their_first_line(capsys):
    assert main(["show", "configs"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for path in (PACKAGE.parent / "configs").glob("*/*.toml"):
        title = " ".join(path.read_text().split("\n")[0].lstrip("# ").split())
        assert f"{path.parent.name}/{path.stem} {title}" in text
