"""fedddp.data.readers.leaf: the files that LEAF's scripts write."""

import json

import numpy as np
import pytest
import torch

from fedddp.config import UsageError
from fedddp.data import load
from fedddp.data.readers.characters import VOCABULARY
from fedddp.data.targets import IGNORED

LINE = "Shall I compare thee to a summer's day? Thou art more lovely and more temperate:"


def write(folder, part, *files):
    (folder / part).mkdir(parents=True)
    for i, data in enumerate(files):
        samples = [len(said["y"]) for said in data.values()]
        content = {"users": list(data), "num_samples": samples, "user_data": data}
        (folder / part / f"all_data_{i}.json").write_text(json.dumps(content))


def said(x, y):
    return {"x": x, "y": y}


def test_femnist_keeps_its_pixels_and_its_writers(tmp_path):
    pixels = np.random.default_rng(0).random((7, 784)).round(3).tolist()
    write(tmp_path, "train", {"w9": said(pixels[:2], [0, 61])}, {"w1": said(pixels[2:3], [1]), "none": said([], [])})
    write(tmp_path, "test", {"w1": said(pixels[3:5], [61, 0]), "new": said(pixels[5:], [1, 1])})
    data = load("leaf", tmp_path, False, {"shape": [1, 28, 28]})
    assert data.train.x.shape == (3, 1, 28, 28)
    assert np.allclose(data.train.x.flatten(1), pixels[:3])
    assert np.allclose(data.test.x.flatten(1), pixels[3:])
    assert data.train.owner.tolist() == [0, 0, 1]
    assert data.test.owner.tolist() == [1, 1, 2, 2]
    assert load("leaf", tmp_path, False, {}).train.x.shape == (3, 784)


def test_shakespeare_predicts_each_next_character_or_the_last(tmp_path):
    write(tmp_path, "train", {"KING": said([LINE, LINE[1:] + "\n"], ["\n", "R"]), "FOOL": said([LINE], ["\n"])})
    write(tmp_path, "test", {"KING": said([LINE], ["\n"])})
    each = load("leaf", tmp_path, False, {}, "positions")
    assert (each.num_classes, each.vocabulary, each.train.x.shape) == (VOCABULARY, VOCABULARY, (3, 80))
    assert each.decode(each.train.x[0].tolist()) == LINE
    assert each.decode(each.train.y[0].tolist()) == LINE[1:] + "\n"
    assert each.decode(each.train.y[1].tolist()) == LINE[2:] + "\nR"
    last = load("leaf", tmp_path, False, {})
    assert last.train.y.tolist() == [0, 1, 0]
    assert torch.equal(last.train.x, each.train.x)


def test_sent140_takes_the_text_of_a_row_cut_or_padded(tmp_path):
    def row(text):
        return ["1467812416", "Mon Apr 06", "NO_QUERY", "someone", text, "training"]

    write(tmp_path, "train", {"a": said([row("so happy"), row("s")], [4, 0]), "b": said([row("sad")], [0])})
    write(tmp_path, "test", {"a": said([row("happy")], [4])})
    data = load("leaf", tmp_path, False, {"length": 4})
    assert [data.decode(x.tolist()) for x in data.train.x] == ["so h", "s", "sad"]
    assert data.train.x[1, 1:].tolist() == [0, 0, 0]
    assert data.train.y.tolist() == [1, 0, 0]


def test_padding_is_not_predicted(tmp_path):
    for part in ("train", "test"):
        write(tmp_path, part, {"a": said(["abc"], ["d"]), "b": said(["abcde"], ["f"])})
    data = load("leaf", tmp_path, False, {"length": 5}, "positions")
    assert data.train.y[0, 3:].tolist() == [IGNORED, IGNORED]
    assert [data.decode(y[y != IGNORED].tolist()) for y in data.train.y] == ["bcd", "bcdef"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"users": ["a"], "user_data": {}}', "KeyError: 'a'"),
        ('{"users": ["a"], "user', "JSONDecodeError"),
        ('{"users": ["a"], "user_data": {"a": {"x": [[1, 2], [3]], "y": [0, 1]}}}', "ValueError"),
        ("[]", "TypeError"),
    ],
)
def test_a_file_that_is_not_of_leaf_is_named(tmp_path, content, words):
    for part in ("train", "test"):
        write(tmp_path, part, {"a": said([[1.0], [2.0]], [0, 1])})
    load("leaf", tmp_path, False, {})
    (tmp_path / "test" / "all_data_0.json").write_text(content)
    with pytest.raises(UsageError, match=words) as error:
        load("leaf", tmp_path, False, {})
    assert f"{tmp_path}/test/all_data_0.json: is no file of LEAF" in str(error.value)


def test_no_files_are_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"train has no \*.json with examples"):
        load("leaf", tmp_path, False, {})
