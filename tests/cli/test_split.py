"""fedddp split and fedddp.data.parts: one folder per client, and a rank that has no more than its own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fedddp.comm import Place
from fedddp.config import UsageError, build
from fedddp.data import DATASETS, Parts
from fedddp.data.parts import MANIFEST, TEST, train_file
from fedddp.setup.load import load_data, prepare
from fedddp.setup.resolve import resolve
from tests.helpers.commands import command

main = command("split")

WORDS = ["--data.name=synthetic", "--data.args={num_train=90, num_test=7}", "--run.seed=3"]
SHARDS = [*WORDS, "--data.partition.name=quantity", "--data.partition.num_clients=5"]


@pytest.fixture
def parts(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "parts"), *SHARDS]) == 0
    assert "client-00000 to client-00004" in capsys.readouterr().out
    return tmp_path / "parts"


def whole():
    args = {"num_train": 90, "num_test": 7}
    partition = {"name": "quantity", "num_clients": 5}
    table = {"run": {"seed": 3}, "data": {"name": "synthetic", "args": args, "partition": partition}}
    return load_data(build(table))


def prepared(root, place, /, **data):
    table = {"run": {"dir": str(root.parent), "device": "cpu", "threads": 1}, "model": {"name": "mlp", "hidden": 2}}
    config = build({**table, "data": {"name": "parts", "root": str(root), **data}})
    return prepare(resolve(config, place), place)


def test_a_rank_has_its_own_clients_as_the_whole_dataset_would_give_them(parts):
    dataset, partition = whole()
    for rank in range(2):
        p = prepared(parts, Place(rank, 2))
        assert p.data.placement == "home"
        assert p.data.sizes.tolist() == partition.sizes.tolist()
        assert torch.equal(p.test.x, dataset.test.x)
        for k in range(5):
            if k % 2 != rank:
                with pytest.raises(KeyError):
                    p.data.examples(k)
                continue
            rows = torch.from_numpy(partition.indices(k)).long()
            for held, there in zip(p.data.examples(k), (dataset.train.x, dataset.train.y), strict=True):
                assert torch.equal(held, there[rows])


def test_nothing_but_the_own_folders_and_the_public_one_is_needed(parts):
    before = prepared(parts, Place(1, 2)).signature
    for k in (0, 2, 4):
        shutil.rmtree((parts / train_file(k)).parent)
    assert prepared(parts, Place(1, 2)).signature == before
    with pytest.raises(UsageError, match=r"client-00000/train.safetensors cannot be read.*own clients"):
        prepared(parts, Place(0, 2))


def test_ranks_agree_on_a_signature_without_labels_and_notice_another_division(parts, tmp_path):
    first, second = (prepared(parts, Place(rank, 2)) for rank in (0, 1))
    assert first.signature == second.signature
    assert first.output.counts.counts.tolist() == first.data.sizes.view(-1, 1).tolist()
    assert not first.output.counts.by_label
    main([f"--out={tmp_path / 'other'}", *SHARDS])  # the same examples under another salt
    other = prepared(tmp_path / "other", Place(1, 2)).signature
    assert [key for key in other if other[key] != first.signature[key]] == ["data and partition"]


def test_the_division_is_what_the_configuration_of_a_run_shows(parts):
    config = prepared(parts, Place(0, 2)).config
    assert (type(config.data.partition).__name__, config.data.partition.num_clients) == ("Quantity", 5)
    again = resolve(config, Place(0, 2))  # as a resumed run reads it
    assert again.data == config.data


def test_a_division_keeps_the_seed_of_its_partition(tmp_path):
    root = tmp_path / "seeded"
    assert main([f"--out={root}", *SHARDS, "--data.partition.seed=9"]) == 0
    assert Parts().public(root).seed == 9
    assert prepared(root, Place(0, 2), partition={"name": "quantity", "seed": 9}).config.data.partition.seed == 9
    with pytest.raises(UsageError, match="partition"):
        prepared(root, Place(0, 2), partition={"name": "quantity", "seed": 8})


def test_everybody_is_loaded_where_all_the_folders_are(parts):
    dataset, partition = whole()
    loaded = DATASETS["parts"](parts, False)
    assert isinstance(DATASETS["parts"], Parts)
    assert loaded.train.y.sum() == dataset.train.y.sum()
    assert len(loaded.train) == partition.sizes.sum() == 90
    divided = Parts().divided(parts, 0, 1)[1]
    assert np.array_equal(divided.counts(loaded.train.y.numpy(), 10), partition.counts(dataset.train.y.numpy(), 10))


def test_only_its_owner_enters_a_clients_folder_and_sums_cannot_be_guessed(parts, tmp_path):
    assert [oct(p.stat().st_mode & 0o777) for p in sorted(parts.glob("client-*"))] == ["0o700"] * 5
    assert [oct(p.stat().st_mode & 0o777) for p in sorted(parts.glob("client-*/*"))] == ["0o600"] * 5
    main([f"--out={tmp_path / 'again'}", *SHARDS])
    one, other = (json.loads((p / MANIFEST).read_text())["sha256"] for p in (parts, tmp_path / "again"))
    assert [k for k in one if one[k] == other[k]] == [TEST]


def damage(parts: Path, how: str) -> None:
    manifest = json.loads((parts / MANIFEST).read_text())
    if how == "flipped":
        content = bytearray((parts / train_file(1)).read_bytes())
        content[-1] ^= 1
        (parts / train_file(1)).write_bytes(content)
    elif how == "size":
        manifest["sizes"][1] += 1
    elif how == "format":
        manifest["format"] = 2
    elif how == "keys":
        del manifest["sizes"]
    (parts / MANIFEST).write_text("{" if how == "json" else json.dumps(manifest))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("flipped", "client-00001/train.safetensors: its SHA-256 is not the one in"),
        ("size", "the manifest says"),
        ("format", "its format is 2"),
        ("keys", "is not a manifest"),
        ("json", "is not a manifest"),
    ],
)
def test_a_damaged_division_is_refused_in_one_line(parts, how, told):
    damage(parts, how)
    with pytest.raises(UsageError, match=told) as refused:
        prepared(parts, Place(1, 2))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("data", "place", "told"),
    [
        ({"placement": "shared"}, Place(0, 2), "data.placement='shared'.*examples only"),
        ({"partition": {"name": "dirichlet"}}, Place(0, 2), "was divided as Quantity"),
        ({"partition": {"num_clients": 4}}, Place(0, 2), "was divided as Quantity"),
        ({"args": {"a": 1}}, Place(0, 2), "data.args.*take no arguments"),
        ({"root": "nowhere"}, Place(0, 2), "public/manifest.json cannot be read"),
        ({}, Place(5, 6), "5 clients, there are 6 ranks"),
    ],
)
def test_what_a_division_cannot_give_is_refused_in_one_line(parts, data, place, told):
    with pytest.raises(UsageError, match=told) as refused:
        prepared(parts, place, **data)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (SHARDS, "the following arguments are required: --out"),
        (["--out=.", *SHARDS], "is not an empty folder"),
        (["--out=new", *WORDS], "data.partition.num_clients=0"),
        (["--out=new", "--data.name=parts"], "is divided already"),
        (["--out=new", *WORDS, "--data.partition.num_clients=91"], "at most 90 clients"),
    ],
)
def test_mistakes_of_a_splitter_are_one_line(words, told, parts, monkeypatch, capsys):
    monkeypatch.chdir(parts)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not Path("new").exists()
