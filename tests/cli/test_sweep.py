"""fedddp sweep: runs once and for all, goes on where it was, one table of what came of it. Runs in this process."""

import csv
import json
import math
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

from fedddp import UsageError, train
from fedddp.cli.sweep import command as program
from fedddp.cli.sweep import run as running
from fedddp.cli.sweep.grid import read
from fedddp.cli.sweep.latex import as_latex
from fedddp.cli.sweep.table import Average, RunResult, as_csv, curves, markdown, rows
from fedddp.cli.sweep.worker import Worker
from tests.helpers.commands import command

pytestmark = pytest.mark.slow

FILE = """
[sweep]
target_accuracy = 0.5
[base]
run = { rounds = 2, threads = 1 }
data = { name = "synthetic", args = { num_train = 60, num_test = 20 }, partition.num_clients = 3 }
model = { name = "mlp", hidden = 4 }
telemetry = { tensorboard = false, progress = "off" }
[axis.rate]
slow = { client.optimizer.lr = 0.01 }
fast = { client.optimizer = { lr = 0.1, momentum = 0.5 } }
[grid]
run.seed = [0, 1]
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """sweep(*words) runs the program on FILE, each run in this process; ``sweep.trained`` lists those that started."""
    monkeypatch.chdir(tmp_path)
    Path("trial.toml").write_text(FILE)
    trained = []

    def in_process(worker, plan, log, look):
        trained.append(plan.stem)
        code = train.main([str(plan)])
        look()
        return code

    def run(*words):
        trained.clear()
        return command("sweep")(["trial.toml", *words])

    monkeypatch.setattr(running, "_supervised", in_process)
    run.trained = trained
    return run


def summaries():
    return {path.parent.name: json.loads(path.read_text()) for path in Path("runs/trial").glob("*/summary.json")}


ALL = ["slow-seed=0", "slow-seed=1", "fast-seed=0", "fast-seed=1"]


def test_every_run_once_and_the_table_says_what_they_gave(sweep, capsys):
    assert sweep() == 0
    assert sweep.trained == ALL
    found = summaries()
    with open("runs/trial/table.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["rate"] for line in lines] == ["slow", "fast"]
    for line in lines:
        one, other = (found[f"{line['rate']}-seed={seed}"]["final_test_accuracy"] for seed in (0, 1))
        assert float(line["final_test_accuracy"]) == pytest.approx((one + other) / 2)
        assert float(line["final_test_accuracy_deviation"]) == pytest.approx(abs(one - other) / math.sqrt(2))
        assert (line["runs_done"], line["runs"], line["remark"]) == ("2", "2", "")
    text = Path("runs/trial/table.md").read_text()
    assert "| rate | final test accuracy | best | rounds to 0.5 | runs | seconds a run |" in text
    assert text in capsys.readouterr().out
    assert Path("runs/trial/curves.png").stat().st_size > 5000
    assert sweep() == 0
    assert sweep.trained == []
    assert "4 of 4 runs are done already" in capsys.readouterr().out


def test_only_some_of_them_and_the_table_has_all(sweep):
    assert sweep("--only=fast", "--only=seed=1") == 0
    assert sweep.trained == ["fast-seed=1"]
    with open("runs/trial/table.csv") as file:
        assert [(line["rate"], line["runs_done"]) for line in csv.DictReader(file)] == [("slow", "0"), ("fast", "1")]
    assert sweep() == 0
    assert sweep.trained == ["slow-seed=0", "slow-seed=1", "fast-seed=0"]


def test_more_rounds_go_on_and_end_where_an_uninterrupted_sweep_ends(sweep):
    assert sweep("--run.rounds=1", "--only=seed=0") == 0
    assert sweep("--only=seed=0") == 0
    assert sweep.trained == ["slow-seed=0", "fast-seed=0"]
    assert sweep("--sweep.name=whole", "--only=seed=0") == 0
    for name in ("slow-seed=0", "fast-seed=0"):
        parts, whole = (json.loads(Path(f"runs/{at}/{name}/summary.json").read_text()) for at in ("trial", "whole"))
        assert (parts["rounds"], parts["model_sha256"]) == (2, whole["model_sha256"])


def test_a_run_that_was_cut_off_goes_on(sweep, capsys):
    assert sweep("--only=slow") == 0
    folder = Path("runs/trial/slow-seed=1")
    (folder / "summary.json").unlink()  # killed after the last round, before it told
    capsys.readouterr()
    assert sweep("--dry-run") == 0
    told = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if "seed=" in line}
    assert ["done" in told["slow-seed=0"], "goes on after round 2" in told["slow-seed=1"]] == [True, True]
    assert "new" in told["fast-seed=0"]
    assert sweep("--only=slow") == 0
    assert sweep.trained == ["slow-seed=1"]
    assert (folder / "summary.json").exists()


def test_another_configuration_is_not_mixed_in(sweep, capsys):
    assert sweep("--only=slow-seed=0") == 0
    capsys.readouterr()
    assert sweep("--client.batch_size=5") == 2
    assert sweep.trained == []
    line = capsys.readouterr().err.strip()
    assert "run slow-seed=0: runs/trial/slow-seed=0 was made with another configuration" in line
    assert "client.batch_size is 10 there, 5 here" in line
    assert line.count("\n") == 0
    for changeable in ("--run.timeout=60", "--checkpoint.keep=1", "--data.download=false"):
        assert sweep(changeable, "--only=slow-seed=0") == 0
        assert sweep.trained == []


def test_a_mistake_starts_nothing_and_makes_nothing(sweep, capsys):
    text = Path("trial.toml").read_text()
    Path("trial.toml").write_text(text.replace("momentum = 0.5", "momentum = 1.5"))
    assert sweep() == 2
    assert sweep.trained == []
    assert not Path("runs").exists()
    assert capsys.readouterr().err.strip() == (
        "fedddp: trial.toml: run fast-seed=0: client.optimizer.momentum=1.5: should be less than 1"
    )
    assert sweep("--sweep.target=perplexity<=9") == 2
    assert "sweep.target, sweep.target_accuracy: both say" in capsys.readouterr().err
    assert command("sweep")(["--dry-run"]) == 2
    assert "give one SWEEP.toml" in capsys.readouterr().err


def test_a_failed_run_costs_its_own_row(sweep, capsys):
    Path("trial.toml").write_text(
        FILE + '\n[axis.algorithm]\ngood.algorithm.name = "fedavg"\n'
        'bad.algorithm = { name = "faulty:Faulty", client = -1 }\n'
    )
    assert sweep("--only=seed=0", "--only=slow") == 1
    assert sweep.trained == ["slow-good-seed=0", "slow-bad-seed=0"]
    reason = "NothingLearned: every client failed in every round, so training stopped after round 1"
    assert f"slow-bad-seed=0 failed: {reason}" in Path("runs/trial/table.md").read_text()
    assert "run 2/2  slow-bad-seed=0  failed: NothingLearned: every client failed" in capsys.readouterr().out


def test_the_lock_keeps_a_second_sweep_out(sweep, capsys):
    with program._alone(Path("runs/trial")):
        assert sweep() == 2
    assert "runs/trial: a sweep, or a run that it left, is at work there" in capsys.readouterr().err
    assert sweep.trained == []


def test_a_run_of_ranks_that_outlives_its_sweep_holds_the_lock(tmp_path):
    with program._alone(tmp_path):
        run = subprocess.Popen(["sleep", "60"], close_fds=False)  # as a worker starts it
    try:
        with pytest.raises(UsageError, match="a run that it left, is at work there"), program._alone(tmp_path):
            pass
    finally:
        run.kill()
        run.wait()
    with program._alone(tmp_path):
        pass


def test_the_folder_is_one_hparams_table(sweep):
    """Asked of TensorBoard's own backend: a row a run, the columns those keys in which runs differ."""
    assert sweep("--telemetry.tensorboard=true", "--only=seed=0") == 0
    events = EventMultiplexer().AddRunsFromDirectory("runs/trial")
    events.Reload()
    provider = MultiplexerDataProvider(events, "runs/trial")
    asked = context.RequestContext(), backend_context.Context(base_plugin.TBContext(data_provider=provider)), "trial"
    experiment = get_experiment.Handler(*asked, api_pb2.GetExperimentRequest()).run()
    keys = [info.name for info in experiment.hparam_infos]
    assert sorted(keys) == ["client.optimizer.lr", "client.optimizer.momentum", "run.seed"]
    assert "1 learning/accuracy test" in [info.name.tag for info in experiment.metric_infos]
    columns = [api_pb2.ColParams(hparam=key) for key in keys]
    request = api_pb2.ListSessionGroupsRequest(
        col_params=columns, start_index=0, slice_size=9, allowed_statuses=[api_pb2.STATUS_SUCCESS]
    )
    groups = list_session_groups.Handler(*asked, request).run().session_groups
    told = {group.sessions[0].name: group for group in groups}
    assert sorted(told) == ["fast-seed=0/tensorboard", "slow-seed=0/tensorboard"]
    fast = told["fast-seed=0/tensorboard"]
    assert fast.hparams["client.optimizer.momentum"].number_value == 0.5
    final = next(v.value for v in fast.metric_values if v.name.tag == "1 learning/accuracy test")
    assert final == pytest.approx(summaries()["fast-seed=0"]["final_test_accuracy"])


@pytest.fixture
def made_up(tmp_path):
    """A 2 x 2 grid over three seeds, with outcomes made up: the seed's curve moved down by 0.1 a row."""
    text = FILE.replace("run.seed = [0, 1]", "run.seed = [0, 1, 2]\nclient.local_epochs = [1, 5]")
    (tmp_path / "made.toml").write_text(text)
    sweep = read(tmp_path / "made.toml")
    order = {"slow": 0, "fast": 2}
    outcomes = []
    for run in sweep.runs:
        row, seed = order[run.labels["rate"]] + (run.labels["client.local_epochs"] == "5"), run.config.run.seed
        curve = [{"round": t, "test_accuracy": 0.2 * t + 0.02 * seed - 0.1 * row} for t in (1, 2, 3, 4)]
        summary = {"final_test_accuracy": curve[-1]["test_accuracy"], "best_test_accuracy": 0.9, "seconds_total": 2.0}
        outcomes.append(RunResult(run, summary, curve))
    return sweep, outcomes


def test_mean_deviation_and_rounds_are_those_of_the_seeds(made_up):
    sweep, outcomes = made_up
    table = rows(sweep, outcomes)
    assert [row.labels for row in table] == [("slow", "1"), ("slow", "5"), ("fast", "1"), ("fast", "5")]
    mean = table[1].mean("final_test_accuracy")
    assert (mean.mean, mean.deviation, mean.n) == (pytest.approx(0.72), pytest.approx(0.02), 3)
    assert table[0].rounds_to_target == Average(3.0, 0.0, 3)  # 0.4, 0.42, 0.44 after two rounds, above 0.5 after three
    assert table[3].rounds_to_target == Average(4.0, 0.0, 3)
    text = markdown(sweep, table)
    assert "| slow | 5 | 72.00 ± 2.00 | 90.00 ± 0.00 | 3.0 ± 0.0 | 3/3 | 2.0 |" in text
    assert "| rate | 1 | 5 |" in text
    assert "| fast | 62.00 ± 2.00 | 52.00 ± 2.00 |" in text
    assert "over run.seed = 0, 1, 2" in text


def test_in_latex_the_best_of_a_setting_is_bold_and_two_axes_are_crossed(made_up):
    sweep, outcomes = made_up
    text = as_latex(sweep, rows(sweep, outcomes)).splitlines()
    assert text[0].startswith("% final test accuracy in percent")
    assert text[1:5] == [r"\begin{tabular}{lrr}", r"\toprule", r"rate & 1 & 5 \\", r"\midrule"]
    assert text[5] == r"slow & $\mathbf{82.00 \pm 2.00}$ & $72.00 \pm 2.00$ \\"
    assert text[-2:] == [r"\bottomrule", r"\end{tabular}"]
    labelled = [replace(o.run, labels={**o.run.labels, "rate": "50%_{" + o.run.labels["rate"]}) for o in outcomes]
    renamed = [RunResult(run, o.summary, o.history) for run, o in zip(labelled, outcomes, strict=True)]
    assert r"50\%\_\{slow &" in as_latex(sweep, rows(sweep, renamed))


def test_in_latex_less_is_better_of_a_perplexity_and_what_is_missing_is_a_dash(texts):
    sweep, outcomes = texts
    half = [RunResult(o.run, None, []) if "fast" in o.run.name else o for o in outcomes]
    text = as_latex(sweep, rows(sweep, half))
    assert r"slow & $\mathbf{6.000 \pm 1.000}$ & $\mathbf{6.000 \pm 1.000}$" in text
    assert r"fast & -- & --" in text


def test_workers_share_cores_and_gpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert [Worker(i, 2)._cores() for i in range(2)] == [{0, 2}, {1, 3}]
    assert [Worker(i, 5)._cores() for i in range(5)] == [{0}, {1}, {2}, {3}, {0}]
    assert Worker()._cores() == {0, 1, 2, 3}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    given = [Worker(i, 4, nproc)._environment()["CUDA_VISIBLE_DEVICES"] for nproc in (1, 2) for i in range(4)]
    assert given == ["4", "5", "7", "4", "4,5", "7,4", "5,7", "4,5"]
    assert Worker()._environment() == {}


def test_what_was_not_reached_or_failed_is_left_out_of_the_mean_and_said(made_up):
    sweep, outcomes = made_up
    low = [
        RunResult(o.run, o.summary, [{**m, "test_accuracy": m["test_accuracy"] - 0.05} for m in o.history])
        for o in outcomes
    ]
    last = [
        i for i, o in enumerate(low) if o.run.labels["rate"] == "fast" and o.run.labels["client.local_epochs"] == "5"
    ]
    low[last[0]] = RunResult(low[last[0]].run, None, [], "no memory | at all")
    table = rows(sweep, low)
    assert [row.rounds_to_target for row in table] == [Average(3.0, 0.0, 3), *[Average(4.0, 0.0, 3)] * 2, None]
    assert [len(row.done) for row in table] == [3, 3, 3, 2]
    text = markdown(sweep, rows(sweep, low))
    assert "fast-seed=0-local_epochs=5 failed: no memory / at all" in text
    assert "2/3" in text
    assert "no memory | at all" in as_csv(sweep, rows(sweep, low))
    single = Average.of([0.5])
    assert (single.deviation, Average.of([])) == (None, None)


def test_the_picture_has_a_panel_and_a_line_for_each(made_up):
    sweep, outcomes = made_up
    figure = curves(sweep, rows(sweep, outcomes))
    panels = figure.axes
    assert [axes.get_title() for axes in panels] == ["rate: slow", "rate: fast"]
    assert [line.get_label() for line in panels[0].get_lines()[:2]] == ["1", "5"]
    assert list(panels[1].get_lines()[1].get_ydata()) == pytest.approx([-0.08, 0.12, 0.32, 0.52])
    assert len(panels[0].collections) == 2  # bands of deviation
    curves(sweep, rows(sweep, [RunResult(o.run, None, []) for o in outcomes])).canvas.draw()  # nothing yet


@pytest.fixture
def texts(made_up):
    """The same grid of runs that are measured by perplexity, from 10 on down to 7 and less."""
    sweep, outcomes = made_up
    found = []
    for o in outcomes:
        told = [
            {"round": t, "test_perplexity": 11.0 - t - o.run.config.run.seed, "test_loss": 2.0} for t in range(1, 5)
        ]
        found.append(RunResult(o.run, {"final_test_perplexity": told[-1]["test_perplexity"], "seconds_total": 1}, told))
    return sweep, found


def test_a_table_shows_the_metric_that_the_runs_have(texts):
    sweep, outcomes = texts
    settings = sweep.settings.model_copy(update={"target": "perplexity<=8", "target_accuracy": None})
    table = rows(sweep := replace(sweep, settings=settings), outcomes)
    assert table[0].rounds_to_target == Average(2.0, 1.0, 3)
    text = markdown(sweep, table)
    assert "| final test perplexity | best | rounds to perplexity<=8 |" in text
    assert "| slow | 1 | 6.000 ± 1.000 | - | 2.0 ± 1.0 | 3/3 | 1.0 |" in text
    assert "Perplexity, mean ± sample standard deviation" in text
    assert "percent" not in text
    assert as_csv(sweep, table).startswith("rate,client.local_epochs,final_test_perplexity,final_test_perplexity_dev")
    (first, *_) = curves(sweep, table).axes
    assert first.get_ylabel() == "test perplexity, lower is better"
    assert list(first.get_lines()[0].get_ydata()) == pytest.approx([9, 8, 7, 6])
    assert outcomes[0].result == "test perplexity 7.0000"
    other = replace(sweep, settings=settings.model_copy(update={"target": "auroc>=0.9"}))
    assert "there is no auroc" in markdown(other, rows(other, outcomes))


def test_runs_of_different_metrics_share_the_loss(made_up, texts):
    sweep, outcomes = texts
    assert {row.key for row in rows(sweep, [*outcomes[:2], *made_up[1][2:]])} == {"test_loss"}
    both = [RunResult(o.run, o.summary, [{**m, "test_accuracy": 0.5} for m in o.history]) for o in outcomes[:2]]
    assert {row.key for row in rows(sweep, [*both, *made_up[1][2:]])} == {"test_accuracy"}


@pytest.mark.parametrize(
    ("status", "said", "code", "reason"),
    [
        ({"state": "failed", "error": "OSError: disk full"}, "whatever", 1, "OSError: disk full"),
        (
            {"state": "interrupted", "reason": "SIGTERM"},
            "",
            75,
            "stopped from outside (SIGTERM); the same command goes on",
        ),
        ({}, "fedddp: data.root='x': does not exist\n", 2, "data.root='x': does not exist"),
        (
            {},
            "fedddp[rank 0]: first\nfedddp[rank 1]: rank 1 is missing\n=====\nRoot Cause\n",
            1,
            "fedddp[rank 1]: rank 1 is missing",
        ),
        ({}, "Traceback:\n  File\nImportError: no torch\n", 1, "ImportError: no torch"),
        ({"state": "running"}, "", -9, "ended by SIGKILL"),
        (
            {"state": "interrupted", "reason": "SIGTERM"},
            "fedddp: rank 1 was ended by SIGKILL; the other ranks were stopped\n",
            1,
            "rank 1 was ended by SIGKILL; the same command goes on",
        ),
        ({}, "round 1\n", 3, "exit code 3: round 1"),
    ],
)
def test_the_reason_of_a_failure_is_a_line(status, said, code, reason):
    assert running._reason(status, said, code) == reason
