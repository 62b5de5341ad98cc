"""fedddp.data.readers.jsonl: prompts with responses and texts, one object a line, and what of them is predicted."""

import json
import logging

import pytest
import torch

import fedddp
from fedddp.config import UsageError
from fedddp.data import load
from fedddp.data.readers.tokens import packed, pieces

tokenizers = pytest.importorskip("tokenizers")
WORDS = ["<end>", "a", "b", "c", "d", "e", "f", "g"]
IGNORED = -100


@pytest.fixture
def root(tmp_path):
    """A folder with a tokenizer of words, as a model's folder has it."""
    vocabulary = {"<pad>": 0} | {word: i + 1 for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    (tmp_path / "model").mkdir()
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    (tmp_path / "model" / "config.json").write_text(json.dumps({"vocab_size": 12}))
    return tmp_path


def ids(text):
    return [1 + WORDS.index(word) for word in text.split()]


def read(root, *rows, **args):
    """The training set of ``rows``; the test set has the same."""
    (root / "some.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    asked = {"file": "some.jsonl", "test_file": "some.jsonl", "tokenizer": "model", "length": 6, **args}
    return load("jsonl", root, False, asked)


def test_only_the_response_and_its_end_are_predicted(root):
    data = read(root, {"prompt": "a b", "response": "c d"})
    assert data.train.x.tolist() == [[*ids("a b c d"), 0, 0]]
    assert data.train.y.tolist() == [[IGNORED, *ids("c d <end>"), IGNORED, IGNORED]]
    assert (data.num_classes, data.num_tokens, data.targets, data.train.owner) == (12, 12, "positions", None)
    assert data.decode([*ids("c d"), 0]) == "c d"


def test_what_is_too_long_is_cut(root, caplog):
    caplog.set_level(logging.WARNING, "fedddp")
    data = read(root, {"prompt": "a b c d", "response": "e f g a"}, {"prompt": "a b c d e f g", "response": "a"})
    assert data.train.y.tolist() == [[IGNORED, IGNORED, IGNORED, *ids("e f g")], [IGNORED] * 6]
    assert "1 of 2 training examples have no token that is predicted" in caplog.text


def test_a_text_is_predicted_as_a_whole_in_rows_that_follow_each_other(root):
    data = read(root, {"text": "a b c d e f g a"})
    assert data.train.x.tolist() == [ids("a b c d e f"), [*ids("g a"), 0, 0, 0, 0]]
    assert data.train.y.tolist() == [ids("b c d e f g"), [*ids("a <end>"), *[IGNORED] * 4]]
    assert [list(piece) for piece, _ in pieces(range(1, 8), 3)] == [[1, 2, 3, 4], [4, 5, 6, 7]]


def test_short_examples_of_one_owner_share_a_row(root):
    rows = [{"prompt": "a", "response": word, "owner": owner} for word, owner in zip("bcde", "xyxx", strict=True)]
    data = read(root, *rows, pack=True)
    assert data.train.owner.tolist() == [0, 0, 1]
    assert data.train.x.tolist() == [[*ids("a b <end> a d"), 0], [*ids("a e"), 0, 0, 0, 0], [*ids("a c"), 0, 0, 0, 0]]
    assert data.train.y.tolist()[0] == [*ids("b <end>"), IGNORED, *ids("d <end>"), IGNORED]
    assert next(packed([([1, 2], [False, True])] * 3, 3)) == ([1, 2, 1, 2], [False, True, False, True])


def test_columns_have_other_names_and_a_part_is_the_test_set(root):
    rows = [{"q": "a", "said": "b", "who": i % 3} for i in range(30)]
    data = read(root, *rows, test_file="", prompt="q", response="said", owner="who", test_fraction=0.3)
    assert len(data.train) + len(data.test) == 30
    assert set(data.train.owner.tolist()) == {0, 1, 2}


MISTAKES = [
    ([{"prompt": "a"}], {}, r"some.jsonl, line 1: has the keys 'prompt'; expected"),
    ([{"text": "a", "owner": "x"}, {"text": "b"}], {}, r"some.jsonl, line 2: some objects have the key 'owner'"),
    ([[1]], {}, r"some.jsonl, line 1: is no JSON object"),
    ([], {}, r"data.args.file: .*some.jsonl is empty"),
    ([{"text": "a"}], {"file": "other.jsonl"}, r"data.args.file: .*other.jsonl cannot be read"),
    ([{"text": "a"}], {"tokenizer": "nothing"}, r"data.args.tokenizer: .*nothing cannot be read"),
    ([{"text": "a"}], {"length": 0}, r"data.args.length='0'"),
]


@pytest.mark.parametrize(("rows", "args", "says"), MISTAKES)
def test_a_mistake_is_one_line(root, rows, args, says):
    with pytest.raises(UsageError, match=says) as error:
        read(root, *rows, **args)
    assert "\n" not in str(error.value)


def trained(root, weighting, rows, owners, **more):
    data = read(root, *rows)
    table = {
        "run": {"dir": str(root / "runs"), "name": weighting, "rounds": 1, "threads": 1},
        "model": {"name": "lstm", "embedding": 3, "hidden": 4, "layers": 1},
        "task": {"name": "next_token", "sample_length": 0},
        "algorithm": {"name": "fedavg", "weighting": weighting},
        "telemetry": {"progress": "off", "tensorboard": False},
    }
    return fedddp.run(table, dataset=data, partition=owners, **more).w


def test_a_client_without_a_target_has_no_weight_and_tokens_weigh_where_asked(root):
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "b", "response": "c d e f"}]
    nothing = {"prompt": "a b c d e f g", "response": "a"}
    both = {w: trained(root, w, [*rows, nothing], [[0], [1], [2]]) for w in ("examples", "tokens")}
    alone = [trained(root, "examples", [*rows, nothing], [[k], [2]]) for k in (0, 1)]
    assert torch.allclose(both["examples"], (alone[0] + alone[1]) / 2, atol=1e-6)
    assert torch.allclose(both["tokens"], (2 * alone[0] + 5 * alone[1]) / 7, atol=1e-6)
    assert not torch.allclose(both["tokens"], both["examples"], atol=1e-6)
