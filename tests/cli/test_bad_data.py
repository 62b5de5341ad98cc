"""Data that cannot be learned from: one line that names what to do, exit code 2, and nothing written."""

import sys

import numpy as np
import pytest

from tests.helpers.commands import command

HEAD = "shop,age,size,bought\n"
ROWS = [f"{'nswe'[i % 4]},{20 + i},{i * i / 7},{i % 2}\n" for i in range(40)]
TABLE = ["--data.name=csv", "--data.args.file=shops.csv", "--data.args.target=bought", '--data.args.ignore=["shop"]']


@pytest.fixture
def run(tmp_path, capsys):
    """Train on data below ``data``; returns the exit code and the lines of standard error."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shops.csv").write_text(HEAD + "".join(ROWS))
    runs = f"--run.dir={tmp_path / 'runs'}"
    always = [f"--data.root={tmp_path / 'data'}", runs, "--run.rounds=1", "--data.partition.num_clients=2"]

    def train(*words):
        code = command("train")([*always, "--model.name=logistic", *words])
        return code, capsys.readouterr().err.splitlines()

    return train


@pytest.fixture
def refused(run, tmp_path):
    def refuse(*words):
        code, lines = run(*words)
        assert code == 2
        assert len(lines) == 1
        assert not (tmp_path / "runs").exists()
        return lines[0]

    return refuse


def change(tmp_path, row, new, file="shops.csv"):
    lines = (tmp_path / "data" / file).read_text().splitlines(keepends=True)
    lines[row] = new
    (tmp_path / "data" / file).write_text("".join(lines))


def test_the_table_itself_can_be_learned(run, tmp_path):
    assert run(*TABLE)[0] == 0
    assert list((tmp_path / "runs").glob("*/summary.json"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.args.target=sold"], "data.args.target='sold': this column does not exist"),
        (["--data.args.owner=who"], "data.args.owner='who': this column does not exist"),
        (["--data.args.target=size"], "(that of example 1 is 0.142857)"),
    ],
)
def test_columns(refused, words, said):
    assert said in refused(*TABLE, *words)


def test_one_owner(refused, tmp_path):
    path = tmp_path / "data" / "shops.csv"
    path.write_text(HEAD + "".join("n" + row[1:] for row in ROWS))
    assert "data.args.owner='shop': every row has the same owner, n" in refused(*TABLE, "--data.args.owner=shop")


def test_a_missing_number_is_counted_and_its_first_row_named(refused, tmp_path):
    for row in (7, 9):
        change(tmp_path, row, "n,nan,1,0\n")
    assert "column 'age': 2 values are missing or NaN, the first in row 7" in refused(*TABLE)


def test_targets_that_are_no_classes(refused, tmp_path):
    change(tmp_path, 3, "n,20,1,0.25\n")
    assert "not whole numbers" in refused(*TABLE)


def test_a_test_set_of_other_classes(refused, tmp_path):
    (tmp_path / "data" / "later.csv").write_text(HEAD + "n,20,1,7\n")
    assert "no label of the test set (7) occurs in the training set" in refused(
        *TABLE, "--data.args.test_file=later.csv"
    )


def test_a_class_of_the_test_set_alone(refused, tmp_path):
    (tmp_path / "data" / "later.csv").write_text(HEAD + "n,20,1,1\nn,20,1,2\n")
    assert "1 of 2 test examples have a label that no training example has (2)" in refused(
        *TABLE, "--data.args.test_file=later.csv"
    )


@pytest.mark.parametrize(("names", "said"), [(("no", "yes"), "no, yes"), (("1", "2"), "1, 2")])
def test_names_and_numbers_from_one_are_numbered_and_said_once(run, tmp_path, names, said):
    rows = [row[:-2] + names[int(row[-2])] + "\n" for row in ROWS]
    (tmp_path / "data" / "shops.csv").write_text(HEAD + "".join(rows))
    code, lines = run(*TABLE)
    assert code == 0
    assert sum(f"labels are {said}, numbered in this order as the classes 0 to 1" in line for line in lines) == 1


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_parquet_file_that_is_cut(refused, tmp_path, keep):
    import pyarrow.csv
    import pyarrow.parquet

    path = tmp_path / "data" / "shops.parquet"
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(tmp_path / "data" / "shops.csv"), path)
    path.write_bytes(path.read_bytes()[:keep])
    line = refused(*TABLE, "--data.name=parquet", "--data.args.file=shops.parquet")
    assert "shops.parquet: cannot be read" in line


def test_images(refused, tmp_path):
    from PIL import Image

    def draw(name, side):
        path = tmp_path / "data" / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((side, side), np.uint8)).save(path)

    words = ["--data.name=imagefolder", f"--data.root={tmp_path / 'data' / 'pets'}"]
    for i in range(9):
        draw(f"cat/{i}.png", 5)
    assert "1 folders with images (cat)" in refused(*words)
    draw("dog/0.png", 6)
    assert "dog/0.png: is 6 x 6, the first image 5 x 5; set data.args.resize=[H,W]" in refused(*words)


@pytest.mark.parametrize(
    ("library", "words", "extra"),
    [
        ("datasets", ["--data.name=hf", "--data.args.path=imdb", "--data.args.input=a", "--data.args.target=b"], "hf"),
        ("PIL", ["--data.name=imagefolder"], "images"),
    ],
)
def test_a_reader_without_its_library(refused, tmp_path, monkeypatch, library, words, extra):
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "0.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, library, None)
    assert f"install it with pip install 'fedddp[{extra}]'" in refused(*words)
