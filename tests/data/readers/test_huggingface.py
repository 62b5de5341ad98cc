"""fedddp.data.readers.huggingface: datasets that the library `datasets` wrote."""

import sys

import numpy as np
import pytest
import torch

from fedddp.config import UsageError
from fedddp.data import load

N = 30
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 6, 5, 3), dtype=np.uint8)
TEXTS = [f"text {i} " * (i % 4 + 1) for i in range(N)]


def test_without_the_library_a_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"needs datasets; install it with pip install 'fedddp\[hf\]'$"):
        load("hf", tmp_path, True, {"path": "ag_news", "input": "text", "target": "label"})


@pytest.fixture
def saved(tmp_path):
    """A dataset of images, texts, numbers and tokens, and the same divided."""
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    columns = {
        "image": [Image.fromarray(p) for p in PIXELS],
        "text": TEXTS,
        "numbers": PIXELS.reshape(N, -1)[:, :4].astype(float).tolist(),
        "ids": PIXELS.reshape(N, -1)[:, :4].tolist(),
        "label": ["yes" if i % 3 else "no" for i in range(N)],
        "who": [f"w{i % 4}" for i in range(N)],
        "one": [float(i) for i in range(N)],
    }
    whole = datasets.Dataset.from_dict(columns)
    whole.save_to_disk(tmp_path / "whole")
    datasets.DatasetDict({"train": whole.select(range(20)), "test": whole.select(range(20, N))}).save_to_disk(
        tmp_path / "divided"
    )
    return tmp_path


def loaded(root, path="divided", input="numbers", target="label", targets="class", **args):
    return load("hf", root, False, {"path": path, "input": input, "target": target} | args, targets)


def test_columns_by_name(saved):
    data = loaded(saved, owner="who")
    assert data.train.x.dtype == torch.float32
    assert np.array_equal(data.train.x, PIXELS.reshape(N, -1)[:20, :4])
    assert data.train.y.tolist() == [int(i % 3 > 0) for i in range(20)]
    assert data.test.owner.tolist() == [i % 4 for i in range(20, N)]
    assert np.array_equal(loaded(saved, input="image").test.x, PIXELS[20:].transpose(0, 3, 1, 2))
    assert loaded(saved, input="ids").train.x.dtype == torch.int64
    assert loaded(saved, input="one", target="one", targets="real").train.x.shape == (20, 1)


def test_text_becomes_its_characters(saved):
    data = loaded(saved, input="text", length=8)
    assert [data.decode(x.tolist()) for x in data.train.x] == [text[:8] for text in TEXTS[:20]]
    assert data.decode(data.train.x[0].tolist()) == TEXTS[0][:8]


def test_text_becomes_the_tokens_of_a_tokenizer(saved):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<pad>": 0, "<unk>": 1, "text": 2} | {str(i): 3 + i for i in range(N)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(saved / "tokenizer.json"))
    data = loaded(saved, input="text", tokenizer="tokenizer.json", length=4)
    assert data.train.x[:2].tolist() == [[2, 3, 0, 0], [2, 4, 2, 4]]
    assert (data.vocabulary, data.decode([2, 4, 0])) == (len(words), "text 1")
    with pytest.raises(UsageError, match=r"data.args.tokenizer: .*nowhere.json cannot be read"):
        loaded(saved, input="text", tokenizer="nowhere.json")


def test_one_set_is_divided_by_seed(saved):
    data = loaded(saved, path="whole", test_fraction=0.3)
    assert len(data.train) + len(data.test) == N
    rows = torch.cat([data.train.x, data.test.x])
    assert sorted(rows.tolist()) == sorted(PIXELS.reshape(N, -1)[:, :4].astype(float).tolist())


def test_mistakes_are_one_line(saved):
    for args, words in (
        ({"input": "nothing"}, r"data.args.input='nothing': this column does not exist; there are 'image', "),
        ({"owner": "nobody"}, r"data.args.owner='nobody': this column does not exist"),
        (
            {"train_split": "validation"},
            r"data.args.train_split='validation': does not exist; there are 'train', 'test'",
        ),
        ({"path": "nowhere"}, r"nowhere does not exist; name a folder that save_to_disk wrote"),
        ({"input": "who", "target": "one"}, r"no label of the test set"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            loaded(saved, **args)
        assert "\n" not in str(error.value)
