"""fedddp.plot: curves of runs, and what it says where it cannot draw them."""

import json

import pytest

from fedddp import plot


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
    monkeypatch.setattr(plot.figures, "curves", lambda found, target: drawn.update(found) or curves(found, target))
    assert plot.main([str(run), "--target=0.2", f"--out={tmp_path / 'curves.png'}"]) == 0
    assert drawn == {"fedavg": [(1, 0.1), (3, 0.3)]}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{run}", "--out={tmp}/curves.foo"], "/curves.foo: cannot be written (Format 'foo' is not supported"),
        (["{run}", "--out={tmp}/no/curves.png"], "/no/curves.png: cannot be written"),
        (["{tmp}/none"], "/none: is not a run folder"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, words, told, capsys):
    with pytest.raises(SystemExit) as ended:
        plot.main([word.format(run=run, tmp=tmp_path) for word in words])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
