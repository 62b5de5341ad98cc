"""fedddp plot: curves of runs, and what it says where it cannot draw them."""

import json

import pytest

from fedddp.cli import plot
from tests.helpers.commands import command


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "fedavg"
    folder.mkdir()
    metrics = [{"round": t, "test_accuracy": None if t == 2 else t / 10} for t in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    return folder


def test_curves_are_drawn_of_the_rounds_that_were_evaluated(run, tmp_path, monkeypatch):
    drawn = {}
    curves = plot.figures.curves
    monkeypatch.setattr(
        plot.figures, "curves", lambda found, *more, **how: drawn.update(found) or curves(found, *more, **how)
    )
    assert command("plot")([str(run), "--target=0.2", f"--out={tmp_path / 'curves.png'}"]) == 0
    assert drawn == {"fedavg": [(1, 0.1), (3, 0.3)]}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


RUNS = {
    "high and low": ([(1, 0.8), (2, 0.95)], [(1, 0.1), (2, 0.12)]),
    "low from the start": ([(1, 0.99)], [(1, 0.01)]),
    "late": ([(1, 0.1), (2, 0.9)], [(1, 0.1), (2, 0.11), (3, 0.64)]),
    "zero": ([(1, 0.0), (2, 0.0)], [(1, 1.0), (2, 1.0)]),
    "alike": ([(1, 0.5), (2, 0.6)], [(1, 0.5), (2, 0.6)]),
}


@pytest.mark.parametrize("target", [None, 0.05, 0.999])
@pytest.mark.parametrize("runs", RUNS)
def test_every_run_of_the_legend_is_in_the_picture(runs, target):
    figure = plot.figures.curves(dict(zip("ab", RUNS[runs], strict=True)), target)
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert all(tick == round(tick) for tick in axes.get_xticks())  # there is no round 1.25
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    for points in RUNS[runs]:
        assert sum(low < value < high for _, value in points) >= len(points) / 2
    assert target is None or low < target < high


def test_runs_that_end_alike_are_told_apart(run, tmp_path, monkeypatch):
    """Two folders of one name, and more runs than there are colours."""
    drawn = {}
    curves = plot.figures.curves
    monkeypatch.setattr(
        plot.figures, "curves", lambda found, *more, **how: drawn.update(found) or curves(found, *more, **how)
    )
    other = tmp_path / "other" / "fedavg"
    other.mkdir(parents=True)
    (other / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text())
    assert command("plot")([str(run), str(other), f"--out={tmp_path / 'curves.png'}"]) == 0
    assert list(drawn) == [str(run), str(other)]
    lines = curves({str(n): [(1, 0.5)] for n in range(25)}, None).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 25


def test_runs_without_an_accuracy_are_left_out_and_said(run, tmp_path, capsys):
    gan = tmp_path / "gan"
    gan.mkdir()
    (gan / "metrics.jsonl").write_text(json.dumps({"round": 1, "test_accuracy": None}) + "\n")
    assert command("plot")([str(run), str(gan), f"--out={tmp_path / 'curves.png'}"]) == 0
    assert f"{gan}: " in capsys.readouterr().err
    assert command("plot")([str(gan)]) == 2


def folder(tmp_path, name, **values):
    """A run folder of three rounds: of a metric its values, in the order in which they are given."""
    (tmp_path / name).mkdir()
    lines = [{"round": t + 1} | {f"test_{k}": v[t] for k, v in values.items()} for t in range(3)]
    lines = [m if "test_accuracy" in m else {**m, "test_accuracy": None} for m in lines]
    (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines))
    return str(tmp_path / name)


R2 = {"r2": [-3.0, 0.2, 0.4], "mae": [9.0, 5.0, 4.0], "loss": [4.0, 1.0, 0.6]}
TEXT = {"perplexity": [900.0, 9.0, 8.0], "accuracy": [0.1, 0.4, 0.5], "loss": [7.0, 2.2, 2.1]}


@pytest.mark.parametrize(
    ("values", "words", "label", "points"),
    [
        (R2, [], "test r2", R2["r2"]),
        (R2, ["--metric=mae", "--target=3"], "test mae, lower is better", R2["mae"]),
        (TEXT, [], "test perplexity, lower is better", TEXT["perplexity"]),
        (TEXT, ["--metric=accuracy"], "test accuracy", TEXT["accuracy"]),
    ],
)
def test_a_run_is_drawn_by_its_own_metric_or_another(values, words, label, points, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot.figures, "save", lambda figure, out: drawn.append(figure))
    assert command("plot")([folder(tmp_path, "run", **values), *words]) == 0
    (axes,) = drawn[0].axes
    assert axes.get_ylabel() == label
    assert list(axes.lines[0].get_ydata()) == points
    low, high = axes.get_ylim()
    assert all(low < value < high for value in points[1:])
    assert not words or words[-1] != "--target=3" or low < 3


@pytest.mark.parametrize(
    ("metric", "values", "unseen"),
    [
        ("perplexity", [5000, 45, 20, 12, 10, 9.5, 9.2, 9.1], [5000]),
        ("r2", [-1e30, 0.1, 0.2, 0.3, 0.4, 0.5], [-1e30]),
        ("mae", [5.0, 4.0, 3.5, 3.4], []),
        ("rmse", [2.0, 2.0], []),
        ("loss", [1e30, 1e20, 0.5, 0.4, 0.4, 0.3, 0.3, 0.3, 0.2], [1e30, 1e20]),
    ],
)
def test_limits_leave_out_only_what_is_far_off(metric, values, unseen):
    low, high = plot.figures.limits(metric, [values, values[1:]], None)
    assert [value for value in values if not low < value < high] == unseen


@pytest.fixture
def seeds(tmp_path, monkeypatch):
    """Two algorithms, one of them with two seeds; what is drawn of them."""
    for name, algorithm, seed, start in (
        ("a0", "fedavg", 0, 0.2),
        ("a1", "fedavg", 1, 0.4),
        ("b0", "scaffold", 0, 0.5),
    ):
        (tmp_path / name).mkdir()
        text = f'[run]\nname = "{name}"\nseed = {seed}\n[algorithm]\nname = "{algorithm}"\n'
        (tmp_path / name / "config.toml").write_text(text)
        spent = {"bytes_sent": 8, "epsilon": None}
        lines = [
            {"round": t, "test_accuracy": start + t / 10, "train_loss": 1 / t, "seconds": t * (seed + 1), **spent}
            for t in (1, 2, 3)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines))
    drawn, curves = {}, plot.figures.curves
    watched = lambda found, *more, **how: drawn.update(found) or curves(found, *more, **how)  # noqa: E731
    monkeypatch.setattr(plot.figures, "curves", watched)
    runs = [str(tmp_path / name) for name in ("a0", "a1", "b0")]
    return lambda *words: (command("plot")([*runs, *words, f"--out={tmp_path / 'curves.png'}"]), drawn)[1]


def test_runs_that_differ_in_their_seed_are_one_curve_with_a_band_named_by_what_differs(seeds, tmp_path):
    drawn = seeds()
    assert list(drawn) == ["fedavg (2 runs)", "scaffold"]
    assert drawn["fedavg (2 runs)"][0] == pytest.approx((1, 0.4, 0.02**0.5))
    assert [value for _, value in drawn["scaffold"]] == pytest.approx([0.6, 0.7, 0.8])
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(("x", "at"), [("bytes", [8, 16, 24]), ("seconds", [1.5, 4.5, 9.0]), ("rounds", [1, 2, 3])])
def test_the_axis_is_rounds_or_what_was_spent_so_far(seeds, x, at):
    assert [point[0] for point in seeds(f"--x={x}")["fedavg (2 runs)"]] == at


def test_any_entry_is_drawn_and_smoothed(seeds):
    drawn = seeds("--metric=train_loss", "--smooth=2")
    assert [value for _, value in drawn["scaffold"]] == pytest.approx([1, 0.75, 5 / 12])


def test_an_axis_that_no_run_has_is_a_mistake(seeds, capsys):
    assert seeds("--x=epsilon") == {}
    assert "fedddp: --x=epsilon: no run has epsilon" in capsys.readouterr().err


def test_runs_of_different_metrics_are_not_one_picture(tmp_path, capsys):
    runs = [folder(tmp_path, "db", **R2), folder(tmp_path, "text", **TEXT)]
    assert command("plot")(runs) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "db is measured by r2, text is measured by perplexity" in line
    assert "--metric=loss" in line
    out = tmp_path / "curves.png"
    assert command("plot")([*runs, "--metric=loss", f"--out={out}"]) == 0
    assert out.exists()


def test_a_metric_that_no_run_has_is_answered_by_those_there_are(tmp_path, capsys):
    assert command("plot")([folder(tmp_path, "db", **R2), "--metric=auc"]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line == "fedddp: --metric=auc: no run has it; there are r2, mae, loss"


def test_a_line_that_is_being_written_is_no_damage(run, tmp_path):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "test_acc')
    assert command("plot")([str(run), f"--out={tmp_path / 'curves.png'}"]) == 0


@pytest.mark.parametrize("line", ["{", "[1, 2]", "7", '{"round": 1}', "null"])
def test_a_damaged_line_is_named(line, run, capsys):
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(f"{line}\n{whole}")
    assert command("plot")([str(run)]) == 2
    assert f"{run}/metrics.jsonl: line 1 is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{run}", "--out={tmp}/curves.foo"], "/curves.foo: cannot be written (Format 'foo' is not supported"),
        (["{run}", "--out={tmp}/no/curves.png"], "/no/curves.png: cannot be written"),
        (["{tmp}/none"], "/none: is not a run folder"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, words, told, capsys):
    assert command("plot")([word.format(run=run, tmp=tmp_path) for word in words]) == 2
    assert told in capsys.readouterr().err
