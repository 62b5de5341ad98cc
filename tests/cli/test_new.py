"""fedddp new: each template is tested and trained as it is written, and the exercise grades both ways."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fedddp.cli.main import main
from fedddp.cli.new import TEMPLATES, templates
from tests.docs.pages import blocks, tables

NAMES = ["exercise", "mnist", "own-algorithm", "own-model", "privacy", "tabular", "text"]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """project(template): a new project named lab, in which we are from then on."""

    def made(template, *more):
        monkeypatch.chdir(tmp_path)
        assert main(["new", "lab", f"--template={template}", *more]) == 0
        monkeypatch.chdir(tmp_path / "lab")
        monkeypatch.syspath_prepend(".")
        return tmp_path / "lab"

    yield made
    for name in {"algorithm", "data", "exercise", "model"} & {*sys.modules}:
        del sys.modules[name]


def program(*words):
    """What a program started in the project gives; it finds fedddp, and of modules only those of the project."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", *words], env=environment, capture_output=True, text=True, timeout=250)


def graded():
    """The outcome of each test of the project: name -> "PASSED", "FAILED" or "ERROR"."""
    result = program("pytest", "-q", "-rA", "-p", "no:cacheprovider")
    return {name: outcome for outcome, name in re.findall(r"^(PASSED|FAILED|ERROR) \S+::(\w+)", result.stdout, re.M)}


def trains():
    result = program("fedddp", "train", "config.toml", "--rounds=2")
    assert result.returncode == 0, result.stdout + result.stderr
    return "round 2/2" in result.stdout and Path("runs/lab/summary.json").is_file()


def test_the_templates_are_those_of_help(capsys):
    assert templates() == NAMES
    assert main(["new", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert all(re.search(rf"\b{name}\b", said) for name in NAMES)


@pytest.mark.parametrize("template", NAMES)
def test_a_project_has_a_configuration_tests_and_a_readme_of_one_page(template, project, capsys):
    folder = project(template)
    written = capsys.readouterr().out
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"config.toml", "README.md"} < there
    assert any(name.startswith("test_") for name in there)
    assert all(f"  {name}\n" in written for name in there)
    readme = (folder / "README.md").read_text()
    assert readme.startswith("# lab\n")
    assert len(readme.splitlines()) <= 36
    assert not [path for path in there if "$name" in (folder / path).read_text()]
    assert {cell[0].strip("`/") for cell in tables(readme)[0][1:]} <= {*there, "solution"}


@pytest.mark.parametrize("template", NAMES)
def test_the_commands_of_a_readme_are_possible(template, project, capsys):
    readme = (project(template) / "README.md").read_text()
    lines = [shlex.split(line, comments=True) for line in "".join(blocks(readme, "")).splitlines()]
    options = [shlex.split(code) for code in re.findall(r"`(--[^`]*)`", readme) if "without" not in code]
    train = [words[1:] for words in lines if words[:2] == ["fedddp", "train"]]
    assert train
    assert options
    for words in [*train, *(["train", "config.toml", *option] for option in options)]:
        assert main([*words, "--print-config"]) == 0, words
    for words in lines:
        assert words[0] in ("pytest", "python", "fedddp")
        assert words[0] != "fedddp" or main([*words[1:], "--help"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("template", [name for name in NAMES if name != "exercise"])
def test_a_project_passes_its_tests_and_trains_as_it_is(template, project):
    project(template)
    outcomes = graded()
    assert len(outcomes) >= 3
    assert {*outcomes.values()} == {"PASSED"}, outcomes
    assert trains()


@pytest.mark.slow
@pytest.mark.timeout(900)  # six programs, on a machine that has other work
def test_the_exercise_is_graded(project):
    folder = project("exercise")
    blank = graded()
    assert len(blank) == 8
    assert "PASSED" not in blank.values()
    refused = program("fedddp", "train", "config.toml")
    assert (refused.returncode, refused.stderr.count("exercise 1: the local step")) == (2, 1)
    given, solved = (folder / "exercise.py").read_text(), (folder / "solution" / "exercise.py").read_text()
    (folder / "exercise.py").write_text(solved)
    assert graded() == dict.fromkeys(blank, "PASSED")
    assert trains()
    lines = [line for line in given.splitlines() if "raise NotImplementedError" in line]
    answers = [line for line in solved.splitlines() if line not in given.splitlines() and "return" in line]
    assert len(lines) == len(answers) == 2
    half = given.replace(lines[0], answers[0])
    for name, wrong in {"2b": half.replace(lines[1], "        return x.mean(dim=0)"), "2a": half}.items():
        (folder / "exercise.py").write_text(wrong)
        outcomes = {test: outcome for test, outcome in graded().items() if outcome == "PASSED"}
        assert any(test.startswith("test_1a") for test in outcomes)
        assert not any(test.startswith((f"test_{name}", "test_3a")) for test in outcomes)


def test_a_lecturer_leaves_the_solution_out(project):
    folder = project("exercise", "--without-solution")
    assert not (folder / "solution").exists()
    assert (folder / "exercise.py").read_text().count("raise NotImplementedError") == 2


def test_the_solution_is_the_exercise_but_for_the_blanks():
    names = ("exercise.py", "solution/exercise.py")
    ours, theirs = ({*(TEMPLATES / "exercise" / name).read_text().splitlines()} for name in names)
    assert len([line for line in theirs - ours if line.startswith("        ")]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["there"], "there: exists already"),
        (["a b"], "NAME='a b': "),
        ([".."], "NAME='..': "),
        (["new", "--template=mnits"], "--template=mnits: unknown; did you mean 'mnist'?"),
        (["new", "--without-solution"], "--without-solution: template mnist has no solution"),
        (["file/new"], "file/new: "),
        (["new", "more"], "more: "),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    assert main(["new", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fedddp: {said}")
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "there"]


def test_it_imports_no_torch(tmp_path):
    code = "import sys; from fedddp.cli.main import main; main(['new', 'lab']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, timeout=60)
