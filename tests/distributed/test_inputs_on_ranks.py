"""Token ids and lazy layers on two ranks, with two clients each: one model, and sequences that were trained on."""

import pytest

from tests.helpers.distributed import configured, train

CASES = {
    "tokens": ("Tokens", "Bag", {}),
    "sequences": ("Tokens", "CharLSTM", {}),
    "lazy layers": ("Vectors", "Lazy", {}),
    "numpy": ("Vectors", "Drawn", {}),
    "tokens by example": ("Tokens", "Bag", {"privacy": {"level": "example", "noise_multiplier": 0.5}}),
}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_one_model(run_ranks, tmp_path, case):
    data, model, sections = CASES[case]
    table = configured(tmp_path, data__partition={"num_clients": 4}, **sections)
    table["data"] = {"name": f"fitting:{data}", "partition": {"num_clients": 4}}
    table["model"] = {"name": f"fitting:{model}"}
    first, second = run_ranks(train, 2, table)
    assert first["sha256"] == second["sha256"]
    assert [line["failures"] for line in first["history"]] == [0, 0]
