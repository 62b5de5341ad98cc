"""Cross-validation over ranks: the same scores as on one, from counts alone, also where data lie divided."""

import pytest

from fedddp.cli.tune import search_of, searched
from fedddp.comm import Place
from fedddp.config import parse
from fedddp.setup.load import load_data
from tests.helpers.commands import command

split = command("split")

DATA = ("--data.name=synthetic", "--data.args={num_train = 120, num_test = 6, num_classes = 3, shape = [1, 5, 5]}")
WORDS = (
    "--model.name=logistic",
    "--client.precision=float64",
    "--client.execution.name=sequential",
    "--run.rounds=2",
    "--run.threads=1",
    "--run.device=cpu",
    "--privacy.guard=true",
)


def tuned(comm, words):
    """Accuracies and losses of each combination in each fold, as rank 0 knows them."""
    place = Place(comm.rank, comm.world_size, comm.rank, comm.world_size)
    search = search_of(parse(words).layers, place, grids=["client.optimizer.lr=0.01,0.3"], folds=2)
    found = searched(search, *load_data(search.base, place), place, comm)
    return [(c.values, c.losses) for c in found]


@pytest.mark.parametrize("divided", [False, True])
def test_two_ranks_find_what_one_does(run_ranks, tmp_path, divided):
    data = [*DATA, "--data.partition.num_clients=4"]
    if divided:
        assert split([*data, f"--out={tmp_path / 'parts'}"]) == 0
        data = ["--data.name=parts", f"--data.root={tmp_path / 'parts'}"]
    words = [*WORDS, *data, f"--run.dir={tmp_path}"]
    (alone,) = run_ranks(tuned, 1, words)
    first, second = run_ranks(tuned, 2, words)
    assert second == []
    for (accuracies, losses), (expected, expected_losses) in zip(first, alone, strict=True):
        assert accuracies == expected
        assert losses == pytest.approx(expected_losses, rel=1e-6)
    assert alone[0] != alone[1]
