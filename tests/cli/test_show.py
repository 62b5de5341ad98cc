"""fedddp show and the picture of a partition."""

import re

import numpy as np
import pytest

from fedddp.cli import show
from fedddp.data import Excerpt, Partition
from fedddp.telemetry import figures
from tests.helpers.commands import command

SMALL = ["--data.name=synthetic", "--data.args.num_train=300", "--data.args.num_test=1"]


@pytest.mark.parametrize("at_once", [100_000, 70])
def test_show_tells_of_everybody_however_many_it_counts_at_once(at_once, tmp_path, monkeypatch, capsys):
    """100 clients of 5 examples: the line below the table is about all of them, the table about the first 40."""
    counted, counts = [], Partition.counts

    def noted(partition, labels, num_classes, clients):
        counted.append(len(clients))
        return counts(partition, labels, num_classes, clients)

    monkeypatch.setattr(show, "COUNTS_AT_ONCE", at_once)
    monkeypatch.setattr(Partition, "counts", noted)
    out = tmp_path / "partition.png"
    words = ["--data.partition.name=overlapping", "--data.partition.num_clients=100", "--data.partition.size=5"]
    assert command("show")([*SMALL, *words, f"--out={out}"]) == 0
    text = capsys.readouterr().out
    fewest, most, mean = re.search(r"(\d) to (\d) labels each \(mean (\d\.\d)\)", text).groups()
    assert "100 clients: 5 to 5 examples (median 5)" in text
    assert (int(fewest), int(most)) == (2, 5)
    assert float(mean) == pytest.approx(10 * (1 - 0.9**5), abs=0.3)  # labels of 5 draws from 10
    rows = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert rows == [*map(str, range(40)), "..."]
    assert out.stat().st_size > 1000
    whole = [6] * 5 + [7] * 10 if at_once == 70 else [100]
    assert sorted(counted) == sorted([40, 60, *whole])  # the table, the picture, the line below


PLACES = {
    "{tmp}/x.foo": "Format 'foo' is not supported",
    "{tmp}/none/x.png": "No such file or directory",
    "{tmp}": "Is a directory",
    "/proc/x.png": "No such file or directory",
    "{tmp}/" + "x" * 300 + ".png": "File name too long",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("key", ["out", "images"])
def test_a_picture_that_cannot_be_written_is_one_line(key, place, tmp_path, capsys):
    path = place.format(tmp=tmp_path)
    assert command("show")([*SMALL, f"--out={tmp_path / 'partition.png'}", f"--{key}={path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fedddp: --{key}={path}: ")
    assert PLACES[place] in line


def test_an_ending_that_is_missing_is_png(tmp_path):
    assert command("show")([*SMALL, f"--out={tmp_path / 'partition'}"]) == 0
    assert (tmp_path / "partition").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("shape", ["2,6,6", "4,3,3", "5,1,1"])
def test_images_of_what_is_no_picture_are_refused(shape, tmp_path, capsys):
    words = [f"--data.args.shape=[{shape}]", f"--images={tmp_path / 'images.png'}"]
    assert command("show")([*SMALL, *words, f"--out={tmp_path / 'partition.png'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fedddp: --images={tmp_path}/images.png: ")
    assert f"[{shape.replace(',', ', ')}]" in line


@pytest.mark.parametrize("counts", [[[50, 50], [50, 50]], [[49, 51], [51, 49]], [[100, 0], [0, 100]], [[1, 1], [1, 1]]])
def test_bubbles_of_a_partition_are_as_large_as_what_is_owned(counts):
    """iid looks even: every bubble has nearly the same area."""
    figure = figures.partition(Excerpt(np.arange(2), np.array(counts), 2))
    (bubbles,) = figure.axes[1].collections
    owned = np.array(counts)[np.nonzero(counts)]
    assert np.allclose(bubbles.get_sizes() / bubbles.get_sizes().max(), owned / owned.max())


def test_the_picture_names_the_clients_it_shows():
    shown = Excerpt(np.array([0, 500_000, 999_999]), np.array([[3, 0], [1, 5], [0, 2]]), 1_000_000)
    figure = figures.partition(shown)
    sizes, labels = figure.axes
    assert [tick.get_text() for tick in labels.get_xticklabels()] == ["0", "500000", "999999"]
    assert labels.collections[0].get_offsets().tolist() == [[0, 0], [1, 0], [1, 1], [2, 1]]
    assert [bar.get_height() for bar in sizes.patches] == [3, 6, 2]
    assert figure.get_suptitle().startswith("who owns what: 1000000 clients, 3 of them shown\n")
    everybody = figures.partition(Excerpt(np.arange(3), shown.counts, 3))
    assert everybody.get_suptitle().startswith("who owns what: 3 clients\n")


@pytest.mark.parametrize("classes", [31, 500, 5000])
def test_many_classes_are_counted_and_not_listed(classes, tmp_path, capsys):
    words = [f"--data.args.num_classes={classes}", "--data.args.shape=[1,2,2]", f"--out={tmp_path / 'partition.png'}"]
    assert command("show")([*SMALL, *words, "--data.partition.num_clients=3"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"client . labels . examples", text)
    rows = re.findall(r"^. +(\d) . +(\d+) . +100 .$", text, re.MULTILINE)
    least, most = re.search(r"(\d+) to (\d+) labels each", text).groups()
    assert [client for client, _ in rows] == ["0", "1", "2"]
    assert {int(least), int(most)} == {min(int(n) for _, n in rows), max(int(n) for _, n in rows)}


TARGETS = {
    "real": ("regression", np.arange(24.0).reshape(12, 2), ["target 0", "target 1"], ["11 (6.904)", "12 (6.904)"]),
    "labels": ("multilabel", np.eye(12, 3, dtype=np.uint8), ["label 0", "label 1", "label 2"], ["1", "1", "1"]),
    "positions": ("next_token", np.full((12, 5), [1, 2, 3, -100, -100]), ["positions", "longest"], ["36", "3"]),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_that_are_no_classes_are_shown_by_their_values(kind, tmp_path, capsys):
    task, y, heads, cells = TARGETS[kind]
    np.savez(tmp_path / "data.npz", x_train=y, y_train=y, x_test=y, y_test=y)
    words = ["--data.name=npz", f"--data.root={tmp_path}", "--data.args.file=data.npz", f"--task.name={task}"]
    words += ["--data.partition.num_clients=1", f"--out={tmp_path / 'partition.png'}"]
    assert command("show")(words) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines if line[0] in "│┃"]
    assert table == [["client", *heads, "examples"], ["0", *cells, "12"]]
    said = ", ".join(f"{head} {cell}" for head, cell in zip(heads, cells, strict=True))
    assert f"1 clients: 12 to 12 examples (median 12); of all: {said}" in lines
    assert (tmp_path / "partition.png").stat().st_size > 1000
