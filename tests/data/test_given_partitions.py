"""Partitions by the data's own owners and from a file, and the file that fedddp show writes."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import fedddp
from fedddp.comm.world import Place
from fedddp.config import UsageError, build
from fedddp.data import Dataset, Examples, Partition, given, write_partition
from fedddp.data.datasets import from_class
from fedddp.data.partition import FromFile, Natural, Partitioner
from fedddp.setup.load import load_data
from fedddp.setup.resolve import resolve
from tests.helpers.commands import command

HANDS = [[4, 1], [0], [5, 2, 3]]
ENDINGS = [".json", ".csv", ".npz"]


class Writers:
    """Twelve images by writers 7, 3 and 20, as a dataset class of the user's."""

    client_ids = (7, 3, 7, 7, 20, 3, 20, 20, 20, 7, 7, 3)

    def __init__(self, root, train, download, known=True):
        self.data = torch.arange(12 * 4, dtype=torch.uint8).view(12, 2, 2)
        self.targets = list(range(12))
        if not known:
            self.client_ids = None


def written(path, hands=HANDS):
    write_partition(path, Partition.dealt(np.concatenate(hands), np.array([len(own) for own in hands])))
    return str(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read(ending, tmp_path):
    path = written(tmp_path / f"partition{ending}")
    partition = FromFile(path=path).split(np.zeros(6, dtype=int), seed=0)
    assert [partition.indices(k).tolist() for k in range(3)] == HANDS
    assert FromFile(path=path).population(world_size=64) == 3


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_overlapping_partition_survives_too(ending, tmp_path):
    overlapping = Partition(np.array([5, 3, 1, 0]), np.array([2, 0, 1]), np.array([2, 2, 3]))
    write_partition(tmp_path / f"p{ending}", overlapping)
    read = FromFile(path=str(tmp_path / f"p{ending}")).split(np.zeros(6, dtype=int), 0)
    assert [read.indices(k).tolist() for k in range(3)] == [[1, 0], [5, 3], [3, 1, 0]]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("p.txt", "", r"should end in one of \.json, \.csv, \.npz$"),
        ("missing.json", None, r"cannot be read \(No such file or directory\); name an existing file$"),
        ("p.json", "{}", "it should be a list of lists"),
        ("p.json", "[[0, 1.5]]", "whole numbers"),
        ("p.json", "[[true]]", "whole numbers"),
        ("p.json", "[[0, ", "is not a partition"),
        ("p.json", "[]", "has no clients; list one or more$"),
        ("p.json", "[[0], [], [1]]", "client 1 has no examples; leave it out$"),
        ("p.json", "[[0], [1, 6]]", "example 6 does not exist, the 6 training examples are numbered from 0"),
        ("p.json", "[[0], [-1]]", "example -1 does not exist"),
        ("p.json", "[[0], [3, 1, 3]]", "client 1 has example 3 more than once; take it out$"),
        ("p.csv", "0,1\n", "its first line should be client,example and is 0,1"),
        ("p.csv", "client,example\n0,x\n", "is not a partition"),
        ("p.csv", "client,example\n-1,0\n", "clients are numbered from 0"),
        ("p.csv", "client,example\n0,0\n2,1\n", "client 1 has no examples"),
        ("p.npz", "not a zip", "is not a partition"),
    ],
)
def test_a_bad_file_is_told_by_key_and_remedy(name, content, reason, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=reason) as error:
        FromFile(path=str(path)).split(np.zeros(6, dtype=int), 0)
    assert str(error.value).startswith(f"data.partition.path={str(path)!r}: ")
    assert "\n" not in str(error.value)


def test_sizes_of_an_npz_have_to_sum_up(tmp_path):
    np.savez(tmp_path / "p.npz", order=np.arange(4), sizes=np.array([2, 3]))
    with pytest.raises(ValueError, match="sizes sum to 5, order has 4"):
        FromFile(path=str(tmp_path / "p.npz")).split(np.zeros(6, dtype=int), 0)
    np.savez(tmp_path / "q.npz", order=np.arange(4.0), sizes=np.array([2, 2]))
    with pytest.raises(ValueError, match="whole numbers"):
        FromFile(path=str(tmp_path / "q.npz")).split(np.zeros(6, dtype=int), 0)


def test_the_population_is_the_files(tmp_path):
    path = written(tmp_path / "p.json")
    section = {"name": "file", "path": path}
    assert resolve(build({"data": {"partition": section}}), Place()).data.partition.num_clients == 3
    with pytest.raises(UsageError, match=r"^cohort\.size=4: .* which is 3;"):
        resolve(build({"data": {"partition": section}, "cohort": {"size": 4}}), Place())
    with pytest.raises(UsageError, match=r"^data\.partition\.path='': .*--save=FILE$"):
        resolve(build({"data": {"partition": {"name": "file"}}}), Place())
    with pytest.raises(ValueError, match=r"^data\.partition\.num_clients=2: .* has 3 clients; leave it out$"):
        FromFile(path=path, num_clients=2).split(np.zeros(6, dtype=int), 0)


@pytest.mark.parametrize("ending", ENDINGS)
def test_show_writes_the_partition_that_a_run_can_then_name(ending, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = ["--data.name=synthetic", "--data.args.num_train=60", "--data.args.num_test=1"]
    rule = ["--data.partition.name=dirichlet", "--data.partition.num_clients=5", "--run.seed=7"]
    assert command("show")([*data, *rule, f"--save=kept{ending}"]) == 0
    assert f"written to kept{ending}" in capsys.readouterr().out
    sections = {"name": "synthetic", "args": {"num_train": 60, "num_test": 1}}
    _, made = load_data(
        build({"data": {**sections, "partition": {"name": "dirichlet", "num_clients": 5}}, "run": {"seed": 7}})
    )
    _, read = load_data(build({"data": {**sections, "partition": {"name": "file", "path": f"kept{ending}"}}}))
    assert [read.indices(k).tolist() for k in range(5)] == [made.indices(k).tolist() for k in range(5)]


def test_show_says_which_file_it_cannot_write(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = ["--data.name=synthetic", "--data.args.num_train=60", "--data.args.num_test=1"]
    for file, reason in (("p.txt", "should end in one of"), ("no/p.json", "cannot be written (No such file")):
        assert command("show")([*data, f"--save={file}"]) == 2
        assert f"fedddp: --save={file}: {reason}" in capsys.readouterr().err


# -- from Python ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "clients",
    [
        [[4, 1], [0], [5, 2, 3]],
        ((4, 1), (0,), (5, 2, 3)),
        [np.array([4, 1]), np.array([0], dtype=np.uint8), range(5, 6)],
        [torch.tensor([4, 1]), [0], torch.tensor([5], dtype=torch.int32)],
        [[4, 1], [], np.array([])],
        [[4, 1], [4, 0], [1]],
    ],
)
def test_lists_of_example_numbers_are_a_partition(clients):
    partition = given(clients, 6)
    assert [partition.indices(k).tolist() for k in range(3)] == [[int(i) for i in own] for own in clients]


@pytest.mark.parametrize("make", [np.array, torch.tensor, list, lambda rows: [np.array(row) for row in rows]])
def test_a_mask_means_its_examples(make):
    masks = [[True, False, False, True], [False, True, False, False], [True, True, True, True]]
    partition = given(make(masks), 4)
    assert [partition.indices(k).tolist() for k in range(3)] == [[0, 3], [1], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("clients", "reason"),
    [
        ([[0], [1, 6]], "example 6 does not exist, the 6 training examples are numbered from 0"),
        ([[0], [1, 2**40]], f"example {2**40} does not exist"),
        ([[0, -1], [1]], "example -1 does not exist"),
        (np.array([[0, 5], [1, 6]]), "example 6 does not exist"),
        ([[0], [1.0, 2.0]], r"client 1 has float64 \[2\]; give a list of example numbers"),
        ([[0], torch.tensor([0.5])], r"client 1 has float32 \[1\]"),
        ([["0"], [1]], r"client 0 has <U1 \[1\]"),
        ([0, 1, 2], r"client 0 has int64 \[\]; give a list of example numbers, or a mask of 6 bools, for each client"),
        ([[[0, 1]], [[2, 3]]], r"client 0 has int64 \[1, 2\]"),
        ([[0, [1]], [2]], "client 0 has object"),
        ([[0], [3, 1, 3]], "client 1 has example 3 more than once; take it out"),
        ([[0, 1], [2, 0], [5, 5]], "client 2 has example 5 more than once"),
        ([[True, False], [False, True]], "client 0 has a mask of 2, there are 6 training examples"),
        ([[True] * 7, [False] * 7], "client 0 has a mask of 7"),
        ([[False] * 6, [False] * 6], "2 clients own 0 examples"),
        ([[], []], "2 clients own 0 examples"),
        ([], "0 clients own 0 examples"),
        (Partition(np.array([0, 6]), np.array([0]), np.array([2])), "example 6 does not exist"),
        (Partition(np.array([0, 1]), np.array([0, 1]), np.array([1, 2])), "client 1 starts at 1 with 2 examples"),
        (Partition(np.array([0, 1]), np.array([-1]), np.array([1])), "client 0 starts at -1"),
        (Partition(np.array([0.0, 1.0]), np.array([0]), np.array([2])), r"order is float64 \[2\]"),
        (Partition(np.array([0, 1]), np.array([0]), np.array([True])), r"sizes is bool"),
        (
            Partition(np.array([1, 2, 1, 3]), np.array([2, 0]), np.array([2, 3])),
            "client 1 has example 1 more than once",
        ),
    ],
)
def test_what_is_no_partition_is_refused_in_one_line(clients, reason):
    with pytest.raises(ValueError, match=f"^{reason}") as error:
        given(clients, 6)
    assert "\n" not in str(error.value)


def test_ranges_that_overlap_hold_nothing_twice():
    order = np.array([3, 1, 0, 3, 1])  # the 3 comes again, where no range holds both
    assert given(Partition(order, np.array([0, 1, 2]), np.array([3, 3, 3])), 4).num_clients == 3
    with pytest.raises(ValueError, match="client 1 has example 3 more than once"):
        given(Partition(order, np.array([1, 0]), np.array([3, 4])), 4)


X = np.zeros((6, 2), dtype=np.float32)
FEW = Dataset.of((X, [0, 1] * 3), (X, [0, 1] * 3))


@pytest.mark.parametrize(
    ("partition", "reason"),
    [
        ([[0, 1], [2, 9]], "partition: example 9 does not exist"),
        ([[0, 1], [0.5]], "partition: client 1 has float64"),
        ({0: [0], 1: [1]}, "partition: is a dict; give a list of each client's example numbers"),
        ("iid", "partition: is a str"),
        ((k for k in ([0], [1])), "partition: is a generator"),
        (5, "partition: is a int"),
    ],
)
def test_a_run_refuses_them_before_anything_starts(partition, reason, tmp_path):
    with pytest.raises(UsageError, match=f"^{reason}"):
        fedddp.run(dataset=FEW, partition=partition, model="logistic", dir=str(tmp_path / "runs"), device="cpu")
    assert not (tmp_path / "runs").exists()


def test_a_run_takes_masks(tmp_path):
    masks = np.arange(6) % 2 == np.arange(2)[:, None]
    how = {"dataset": FEW, "model": "logistic", "rounds": 1, "device": "cpu", "telemetry": {"tensorboard": False}}
    of_masks = fedddp.run(partition=masks, dir=str(tmp_path / "masks"), **how)
    of_lists = fedddp.run(partition=[[0, 2, 4], [1, 3, 5]], dir=str(tmp_path / "lists"), **how)
    assert torch.equal(of_masks.w, of_lists.w)


def test_a_dataset_that_is_none_is_told(tmp_path):
    with pytest.raises(UsageError, match=r"^dataset: is a tuple; make it with Dataset.of\(train, test\)$"):
        fedddp.run(dataset=((X, [0, 1]), (X, [0, 1])), dir=str(tmp_path))


@dataclass(frozen=True)
class Careless(Partitioner):
    """A rule that forgets where the examples end."""

    def split(self, labels, seed):
        return Partition.dealt(np.arange(len(labels) + 1), np.array([len(labels), 1]))


def test_a_rule_of_the_users_is_looked_at_too(tmp_path):
    data = {"name": f"{__name__}:Writers", "partition": {"name": f"{__name__}:Careless", "num_clients": 2}}
    with pytest.raises(UsageError, match=r"^data.partition: Careless is not a partition: example 12 does not exist"):
        load_data(build({"data": data}))


# -- natural ------------------------------------------------------------------------------------------------------


def test_natural_clients_are_the_owners_in_order():
    dataset = from_class(Writers, "nowhere", False)
    partition = Natural(num_clients=3).deal(dataset.train, seed=0)
    assert [partition.indices(k).tolist() for k in range(3)] == [[1, 5, 11], [0, 2, 3, 9, 10], [4, 6, 7, 8]]


class Named(Writers):
    client_ids = ("eve", "bob", "eve", "eve", "zoe", "bob", "zoe", "zoe", "zoe", "eve", "eve", "bob")


def test_owners_may_have_names():
    dataset = from_class(Named, "nowhere", False)
    by_number = Natural(num_clients=3).deal(from_class(Writers, "nowhere", False).train, seed=0)
    by_name = Natural(num_clients=3).deal(dataset.train, seed=0)
    assert [by_name.indices(k).tolist() for k in range(3)] == [by_number.indices(k).tolist() for k in range(3)]


def test_natural_is_a_partition_of_a_users_class_by_name():
    data = {"name": f"{__name__}:Writers", "partition": {"name": "natural", "num_clients": 3}}
    dataset, partition = load_data(build({"data": data}))
    assert isinstance(dataset, Dataset)
    assert partition.sizes.tolist() == [3, 5, 4]


def test_natural_says_what_is_missing_and_how_many_owners_there_are():
    known = from_class(Writers, "nowhere", False).train
    with pytest.raises(ValueError, match=r"^data\.partition\.num_clients=4: the data have 3 owners; set it to 3$"):
        Natural(num_clients=4).deal(known, 0)
    unknown = from_class(Writers, "nowhere", False, known=False).train
    with pytest.raises(ValueError, match=r"^data\.partition\.name='natural': .*client_ids"):
        Natural(num_clients=3).deal(unknown, 0)


def test_as_many_owners_as_examples_are_needed():
    some = Examples(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="2 examples and 3 client_ids"):
        Dataset(some, some, 1, (0.0,), (1.0,))


def test_json_has_a_line_a_client(tmp_path):
    text = (tmp_path / "p.json").read_text() if written(tmp_path / "p.json") else ""
    assert text.splitlines()[1:-1] == ["[4, 1],", "[0],", "[5, 2, 3]"]
    assert json.loads(text) == HANDS
