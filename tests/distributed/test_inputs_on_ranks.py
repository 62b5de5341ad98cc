"""Token ids and lazy layers on two ranks, with two clients each: one model, and sequences that were trained on."""

import pytest
import torch

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


def test_next_characters_under_masks_are_learned_as_without_them(run_ranks, tmp_path):
    text = {
        "data": {"name": "shakespeare-mini", "partition": {"name": "natural", "num_clients": 80}},
        "task": {"name": "next_token"},
        "model": {"name": "gpt", "width": 8, "layers": 1, "heads": 2},
        "cohort": {"size": 6},
    }
    masks = {"secure_aggregation": {"enabled": True}}
    plain = run_ranks(train, 3, configured(tmp_path, run={"name": "plain", "rounds": 2}) | text)
    masked = run_ranks(train, 3, configured(tmp_path, run={"name": "masked", "rounds": 2}, privacy=masks) | text)
    assert len({result["sha256"] for result in masked}) == 1
    assert torch.allclose(masked[0]["w"], plain[0]["w"], rtol=0, atol=1e-5)
    for hidden, seen in zip(masked[0]["history"], plain[0]["history"], strict=True):
        assert hidden["test_perplexity"] == pytest.approx(seen["test_perplexity"], rel=1e-4)
        assert any(purpose == "secure reveal" for purpose in hidden["sent"])
