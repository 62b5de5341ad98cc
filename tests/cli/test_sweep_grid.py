"""fedddp.cli.sweep.grid: which runs a sweep file describes, and what is refused before any starts."""

from pathlib import Path

import pytest

from fedddp.cli.sweep.grid import read
from fedddp.config import UsageError, parse

FILE = """
[sweep]
nproc = 3
files = ["shared.toml"]
[base]
run.rounds = 4
client = { local_epochs = 2 }
[axis.partition]
iid = { data.partition.name = "iid" }
"2 labels" = { data.partition = { name = "shards", shards_per_client = 2 } }
[grid]
run.seed = [0, 7]
"""


@pytest.fixture
def written(tmp_path):
    """written(text) -> path of a sweep file beside shared.toml."""
    shared = "run.rounds = 9\nclient.local_epochs = 3\ndata.partition.num_clients = 5\nclient.batch_size = 8\n"
    (tmp_path / "shared.toml").write_text(shared)

    def write(text=FILE):
        (tmp_path / "trial.toml").write_text(text)
        return tmp_path / "trial.toml"

    return write


def test_the_grid_is_the_product_in_the_files_order(written):
    sweep = read(written())
    assert [run.name for run in sweep.runs] == ["iid-seed=0", "iid-seed=7", "2_labels-seed=0", "2_labels-seed=7"]
    assert [dict(run.labels) for run in sweep.runs[:2]] == [
        {"partition": "iid", "run.seed": "0"},
        {"partition": "iid", "run.seed": "7"},
    ]
    assert sweep.shown == ("partition",)
    assert str(sweep.folder) == "runs/trial"
    swapped = FILE.replace("[grid]\nrun.seed = [0, 7]\n", "").replace("[axis.", "[grid]\nrun.seed = [0, 7]\n[axis.", 1)
    assert read(written(swapped)).runs[1].name == "seed=0-2_labels"


def test_files_base_axes_and_overrides_come_on_top_of_each_other(written):
    sweep = read(written(), parse(["--client.local_epochs=1", "--sweep.name=other", "--sweep.dir=elsewhere"]).overrides)
    run = sweep.runs[2].config
    assert (run.client.batch_size, run.run.rounds, run.client.local_epochs) == (8, 4, 1)  # shared, base, override
    assert (run.data.partition.num_clients, type(run.data.partition).__name__) == (5, "Shards")
    assert (run.run.name, run.run.dir, run.run.resume, run.run.seed) == (
        "2_labels-seed=0",
        "elsewhere/other",
        "auto",
        0,
    )
    alone = FILE.replace('files = ["shared.toml"]', "")
    assert read(written(alone)).runs[0].config.data.partition.num_clients == 3  # as many as ranks


def test_a_listed_section_is_labelled_by_its_name_and_keys(written):
    listed = '[grid]\nalgorithm.server_optimizer = [{ name = "sgd", lr = 1.0 }, { name = "sgd", lr = 0.5 }]\n'
    flags = "[grid]\nprivacy.guard = [true, false]\n"
    assert [run.name for run in read(written(listed)).runs] == ["sgd_lr=1.0", "sgd_lr=0.5"]
    assert [run.name for run in read(written(flags)).runs] == ["guard=true", "guard=false"]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["iid"], ["iid-seed=0", "iid-seed=7"]),
        (["seed=7"], ["iid-seed=7", "2_labels-seed=7"]),
        (["2 labels", "seed=0"], ["2_labels-seed=0"]),
        (["seed=0,seed=7", "i*"], ["iid-seed=0", "iid-seed=7"]),
        ([], ["iid-seed=0", "iid-seed=7", "2_labels-seed=0", "2_labels-seed=7"]),
    ],
)
def test_only_takes_what_matches_every_pattern(written, patterns, names):
    assert [run.name for run in read(written()).only(patterns)] == names


def test_only_says_what_there_is(written):
    with pytest.raises(
        UsageError, match=r"--only=fedsgd: no run of the grid is called that; there are iid-seed=0, iid"
    ):
        read(written()).only(["fedsgd"])


@pytest.mark.parametrize(
    ("change", "words", "line"),
    [
        (("[0, 7]", "[0, -1]"), [], "run iid-seed=_1: run.seed=-1: should be greater than or equal to 0"),
        (("[0, 7]", "3"), [], "grid.run.seed=3: should be a list of values to try"),
        (("[0, 7]", "[]"), [], "grid.run.seed=[]: should be a list of values to try"),
        (("[0, 7]", "[1, 1]"), [], "grid.run.seed=[1, 1]: the same value twice"),
        (("run.seed", "run.sede"), [], "run.sede: unknown key; did you mean 'seed'?"),
        (("run.rounds = 4", 'run.name = "x"'), [], "run.name: the sweep sets it for each run; use sweep.name"),
        (("nproc = 3", "nproc = 0"), [], "sweep.nproc=0: should be greater than or equal to 1"),
        (("nproc", "nprocs"), [], "sweep.nprocs: unknown key; did you mean 'nproc'?"),
        (
            ("nproc = 3", 'average = "seed"'),
            [],
            "sweep.average='seed': is no axis of this grid; the axes are partition",
        ),
        (("[base]", "[bose]"), [], "bose: unknown key; did you mean 'base'?"),
        (('"2 labels"', '"iid "'), [], "two runs would be called 'iid-seed=0'"),
        (("shards_per_client = 2", "shards = 2"), [], "run 2_labels-seed=0: data.partition.shards: unknown key"),
        (("shared.toml", "lost.toml"), [], "lost.toml: cannot be read (No such file or directory)"),
        (("", ""), ["--run.seed=1"], "--run.seed: axis run.seed varies it; choose some of its runs with --only=LABEL"),
        (("", ""), ["--data.partition.name=iid"], "--data.partition.name: axis partition varies it"),
        (("", ""), ["--run.dir=x"], "run.dir: the sweep sets it for each run; use sweep.dir"),
        (("", ""), ["--cohort.size=6"], "run iid-seed=0: cohort.size=6: exceeds the number of clients, which is 5"),
        (("", ""), ["--sweep.target_accuracy=2"], "sweep.target_accuracy=2: should be less than or equal to 1"),
    ],
)
def test_a_mistake_is_one_line(written, monkeypatch, change, words, line):
    path = written(FILE.replace(*change) if change[0] else FILE)
    monkeypatch.chdir(path.parent)  # messages shorten long paths
    with pytest.raises(UsageError) as caught:
        read(Path(path.name), parse(words).overrides)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[base]\nrun.rounds = 3\n", "[axis]\n"])
def test_nothing_to_compare_is_refused(written, text):
    with pytest.raises(UsageError, match="there is nothing to compare"):
        read(written(text))
