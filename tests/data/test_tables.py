"""fedddp.data.tables: CSV and Parquet files by named columns."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

from fedddp.config import UsageError
from fedddp.data import PARTITIONS, load
from fedddp.data.columns import BLOCK, _Growing, divided

PATIENTS = """hospital,age,smokes,blood,ill,part
north,40,true,A,no,train
south,60,false,B,yes,train
north,50,true,A,no,train
east,30,false,B,yes,train
south,45,true,0,no,test
north,20,false,A,yes,test
"""
ARGS = {"file": "patients.csv", "target": "ill", "owner": "hospital", "test_column": "part"}


def loaded(folder, name="csv", **args):
    return load(name, folder, True, args)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "patients.csv").write_text(PATIENTS)
    return tmp_path


@pytest.fixture
def changed(folder):
    def change(old, new):
        assert old in PATIENTS
        (folder / "patients.csv").write_text(PATIENTS.replace(old, new))
        return folder

    return change


def refused(folder, name="csv", **args):
    with pytest.raises(UsageError) as error:
        loaded(folder, name, **args)
    assert "\n" not in str(error.value)
    return error.value


def test_numbers_are_standardised_and_text_becomes_indicators_of_the_training_sets_values(folder, caplog):
    data = loaded(folder, **ARGS)
    age = np.array([40.0, 60, 50, 30])
    expected = (age - age.mean()) / age.std()
    assert data.train.x.dtype == torch.float32
    assert torch.allclose(data.train.x[:, 0], torch.tensor(expected).float())
    assert torch.allclose(data.test.x[:, 0], torch.tensor((np.array([45, 20.0]) - age.mean()) / age.std()).float())
    assert data.train.x[:, 1].tolist() == [1, -1, 1, -1]
    assert data.train.x[:, 2:].tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert data.test.x[:, 2:].tolist() == [[0, 0], [1, 0]]
    assert "column 'blood': 1 test rows have a text that no training row has" in caplog.text
    assert data.train.y.tolist() == [0, 1, 0, 1]
    assert data.test.y.tolist() == [0, 1]


def test_owners_are_natural_clients(folder):
    train = loaded(folder, **ARGS).train
    assert train.owner.tolist() == [1, 2, 1, 0]
    partition = PARTITIONS["natural"](num_clients=3).owners(train, 0)
    assert [partition.indices(k).tolist() for k in range(3)] == [[3], [0, 2], [1]]


def test_numbers_may_stay_as_they_are(folder):
    assert loaded(folder, **ARGS, columns=["age"], standardize=False).train.x.tolist() == [[40], [60], [50], [30]]


def test_parquet_is_the_same(folder):
    table = pyarrow.csv.read_csv(folder / "patients.csv")
    pyarrow.parquet.write_table(table, folder / "patients.parquet", row_group_size=4)
    one, other = loaded(folder, **ARGS), loaded(folder, "parquet", **ARGS | {"file": "patients.parquet"})
    assert torch.equal(one.train.x, other.train.x)
    assert torch.equal(one.test.x, other.test.x)
    assert torch.equal(one.test.y, other.test.y)


def test_the_training_set_of_two_files_fits_what_is_fitted(folder):
    lines = PATIENTS.splitlines()
    (folder / "train.csv").write_text("\n".join(lines[:5]))
    (folder / "test.csv").write_text("\n".join([lines[0], *lines[5:]]))
    args = {key: value for key, value in ARGS.items() if key not in ("test_column", "file")}
    both = loaded(folder, **args, file="train.csv", test_file="test.csv", ignore=["part"])
    one = loaded(folder, **ARGS)
    assert torch.equal(both.train.x, one.train.x)
    assert torch.equal(both.test.x, one.test.x)


def test_a_fraction_is_drawn_by_its_seed(tmp_path):
    rows = "\n".join(f"{i},{i % 2}" for i in range(1000))
    (tmp_path / "t.csv").write_text(f"a,b\n{rows}\n")
    sizes = [len(loaded(tmp_path, file="t.csv", target="b", test_fraction=0.3, seed=s).test) for s in (0, 0, 1)]
    assert sizes[0] == sizes[1] != sizes[2]
    assert 250 < sizes[0] < 350


def test_pixels_have_a_shape_and_stay_bytes(tmp_path):
    stream = np.random.default_rng(0)
    pixels, y = stream.integers(0, 256, (50, 12)), stream.integers(0, 3, 50)
    names = [f"p{i}" for i in range(12)]
    columns = [*pixels.T, y, np.arange(50) % 5 == 0]
    table = pa.table(dict(zip([*names, "label", "held"], columns, strict=True)))
    pyarrow.csv.write_csv(table, tmp_path / "images.csv")
    data = loaded(tmp_path, file="images.csv", target="label", test_column="held", shape=[1, 3, 4])
    train = np.arange(50) % 5 != 0
    assert data.train.x.dtype == torch.uint8
    assert torch.equal(data.train.x, torch.from_numpy(pixels[train].astype(np.uint8)).view(-1, 1, 3, 4))
    assert torch.equal(data.train.y, torch.from_numpy(y[train]))


def test_missing_values_are_the_mean_where_asked_for(changed):
    folder = changed("40,true,A", ",true,")
    data = loaded(folder, **ARGS, missing="mean")
    assert data.train.x[0, 0] == 0
    assert data.train.x[0, 2:].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("40,true", ",true", "column 'age': 1 values are missing or NaN, the first in row 1"),
        ("50,true", "nan,true", "column 'age': 1 values are missing or NaN, the first in row 3"),
        ("30,false", "inf,false", "column 'age': 1 values are infinite, the first in row 4"),
        (
            "false,B,yes,train\nsouth",
            "false,,yes,train\nsouth",
            "column 'blood': 1 values are missing, the first in row 4",
        ),
        ("50,true,A,no", "50,true,A,", "column 'ill': the value in row 3 is missing"),
        ("yes,test", "yes,later", "data.args.test_column='part': has 'later'"),
        ("hospital,age", "hospital,hospital", "data.args.owner='hospital': this column occurs more than once"),
    ],
)
def test_bad_rows_are_refused_with_the_column(changed, old, new, told):
    assert told in str(refused(changed(old, new), **ARGS))


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"target": "sick"}, "data.args.target='sick': this column does not exist; there are 'hospital', 'age'"),
        ({"columns": ["weight"]}, "data.args.columns='weight': this column does not exist"),
        ({"columns": ["ill"]}, "no column is left to predict from"),
        ({"file": "none.csv"}, "none.csv does not exist"),
        ({"test_file": "patients.csv"}, "test_file is given too"),
        ({"shape": [2, 2]}, "data.args.shape: column 'blood' holds text"),
        ({"shape": [2, 2], "columns": ["age"]}, "has 4 numbers, the table 1 input columns"),
        ({"test_fraction": 1.5}, "data.args.test_fraction='1.5': should be less than 1"),
        ({"colums": ["age"]}, "data.args={"),
    ],
)
def test_mistakes_in_the_arguments_are_one_line(folder, args, told):
    assert told in str(refused(folder, **ARGS | args))


def test_one_owner_is_refused(changed):
    folder = changed("south", "north")
    (folder / "patients.csv").write_text((folder / "patients.csv").read_text().replace("east", "north"))
    assert "every row has the same owner, north" in str(refused(folder, **ARGS))


@pytest.mark.parametrize("content", [b"", b"PAR1 is cut", b"a,b\n1,2\n1\n"])
def test_a_damaged_file_is_named(tmp_path, content):
    Path(tmp_path / "bad.csv").write_bytes(content)
    assert "bad.csv: cannot be read" in str(refused(tmp_path, file="bad.csv", target="b"))


def test_a_number_that_turns_into_text_later_is_named(tmp_path):
    rows = "\n".join("1,0" for _ in range(400_000))
    (tmp_path / "late.csv").write_text(f"a,b\n{rows}\nx,1\n")
    assert "late.csv: cannot be read" in str(refused(tmp_path, file="late.csv", target="b"))


def test_too_many_texts_are_refused(tmp_path):
    rows = "\n".join(f"name{i},{i % 2}" for i in range(2000))
    (tmp_path / "t.csv").write_text(f"a,b\n{rows}\n")
    assert "column 'a' has more than 1000 different texts" in str(refused(tmp_path, file="t.csv", target="b"))


def test_several_columns_are_one_target(folder):
    path = folder / "patients.csv"
    path.write_text(
        PATIENTS.replace("ill,part", "ill,weight,part").replace("no,", "no,70.5,").replace("yes,", "yes,80,")
    )
    data = load("csv", folder, True, ARGS | {"target": ["age", "weight"]}, "real")
    assert data.train.y.tolist() == [[40, 70.5], [60, 80], [50, 70.5], [30, 80]]
    assert data.test.y.tolist() == [[45, 70.5], [20, 80]]


def test_a_file_of_many_blocks_keeps_its_rows_in_order(tmp_path):
    """Longer and longer rows are fewer than the first block promises, shorter and shorter ones are more."""
    at = np.arange(60_000)
    owner = np.random.default_rng(0).permutation(at) % 700
    numbers = np.unique([f"o{k}" for k in owner], return_inverse=True)[1]
    for name, digits in (("longer", at // 3000), ("shorter", 20 - at // 3000)):
        rows = [f"{i}.5{'0' * d},{i % 2},o{k}" for i, d, k in zip(at, digits, owner, strict=True)]
        (tmp_path / f"{name}.csv").write_text("x,y,who\n" + "\n".join(rows))
        assert (tmp_path / f"{name}.csv").stat().st_size > 1.2 * BLOCK
        data = loaded(tmp_path, file=f"{name}.csv", target="y", owner="who", standardize=False)
        test = np.isin(at + 0.5, data.test.x[:, 0].numpy())
        assert 10_000 < test.sum() < 14_000
        assert np.array_equal(data.train.x[:, 0], (at + 0.5)[~test])
        assert np.array_equal(data.train.y, at[~test] % 2)
        assert np.array_equal(data.train.owner, numbers[~test])


def test_rows_grow_in_one_array_and_are_divided_in_place():
    growing = _Growing()
    growing.add(np.zeros((2, 3), np.uint8), 4)
    first = growing.rows()
    growing.add(np.ones((2, 3), np.uint8), 4)
    assert np.shares_memory(first, growing.rows())
    growing.add(np.full((1, 3), 0.5, np.float32), 4)
    x = growing.rows()
    assert x.dtype == np.float32
    assert x.tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2 + [[0.5] * 3]
    train, test = divided(x, np.array([True, False, True, False, False]))
    assert (train.tolist(), test.tolist()) == ([[0.0] * 3, [1.0] * 3, [0.5] * 3], [[0.0] * 3, [1.0] * 3])
    assert np.shares_memory(train, x)


@pytest.mark.slow
@pytest.mark.skipif("FEDDDP_TEST_DATA" not in os.environ, reason="FEDDDP_TEST_DATA names no folder with MNIST")
def test_a_table_of_pixels_is_the_dataset_bit_for_bit(tmp_path):
    """As Fashion-MNIST comes: a column for each pixel, and the training and the test set in two files."""
    root = Path(os.environ["FEDDDP_TEST_DATA"])
    images = load("fashion_mnist" if (root / "FashionMNIST").is_dir() else "mnist", root, False, {})
    for part, examples in (("train", images.train), ("test", images.test)):
        columns = {"label": examples.y.numpy()} | {
            f"pixel{i}": p for i, p in enumerate(examples.x.flatten(1).T.contiguous().numpy())
        }
        pyarrow.csv.write_csv(pa.table(columns), tmp_path / f"{part}.csv")
    read = loaded(tmp_path, file="train.csv", test_file="test.csv", target="label", shape=[1, 28, 28])
    for one, other in ((images.train, read.train), (images.test, read.test)):
        assert one.x.dtype == other.x.dtype == torch.uint8
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.y, other.y)
