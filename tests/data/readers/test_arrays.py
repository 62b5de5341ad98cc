"""fedddp.data.readers.arrays: named arrays in a file of numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedddp.config import UsageError
from fedddp.data import load

RNG = np.random.default_rng(0)
X, Y, OWNER = RNG.normal(size=(20, 3)).astype(np.float32), np.arange(20) % 3, np.arange(20) // 5
SPLIT = {"x_train": X[:15], "y_train": Y[:15], "x_test": X[15:], "y_test": Y[15:], "owner_train": OWNER[:15]}


def loaded(folder, save=np.savez, targets="class", args=None, **arrays):
    save(folder / "data.npz", **arrays)
    return load("npz", folder, False, {"file": "data.npz"} | (args or {}), targets)


def refused(folder, *args, **arrays):
    with pytest.raises(UsageError) as error:
        loaded(folder, *args, **arrays)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix("data.name='npz': ")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_both_sets_by_name(tmp_path, save):
    data = loaded(tmp_path, save, **SPLIT)
    assert np.array_equal(data.train.x, X[:15])
    assert np.array_equal(data.test.x, X[15:])
    assert data.test.y.tolist() == Y[15:].tolist()
    assert data.train.owner.tolist() == OWNER[:15].tolist()
    assert data.test.owner is None


def test_uncompressed_arrays_are_mapped_and_the_file_stays_as_it_is(tmp_path):
    order = np.asfortranarray(X[:15])
    data = loaded(tmp_path, **SPLIT | {"x_train": order})
    assert np.array_equal(data.train.x, X[:15])
    before = (tmp_path / "data.npz").read_bytes()
    assert f"{tmp_path / 'data.npz'}\n" in Path("/proc/self/maps").read_text()
    data.test.x.zero_()
    assert (tmp_path / "data.npz").read_bytes() == before


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_fraction_is_the_test_set(tmp_path, save):
    data = loaded(tmp_path, save, args={"test_fraction": 0.3, "x": "a", "owner": "who"}, a=X, y=Y, who=OWNER)
    both = torch.cat([data.train.x, data.test.x])
    at = [np.flatnonzero((row == X).all(axis=1)).item() for row in both.numpy()]
    assert sorted(at) == list(range(20))
    assert torch.cat([data.train.y, data.test.y]).tolist() == Y[at].tolist()
    assert torch.cat([data.train.owner, data.test.owner]).tolist() == OWNER[at].tolist()
    assert 1 <= len(data.test) < 15


def test_pictures_come_with_channels_first(tmp_path):
    pictures = RNG.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
    data = loaded(tmp_path, x_train=pictures, y_train=Y, x_test=pictures[:9], y_test=Y[:9])
    assert np.array_equal(data.train.x, pictures.transpose(0, 3, 1, 2))


def test_real_numbers_and_several_labels(tmp_path):
    arrays = {"x_train": X, "x_test": X}
    real = loaded(tmp_path, targets="real", y_train=X[:, :1] / 3, y_test=X[:, 0], **arrays)
    assert real.num_classes == 1
    assert np.allclose(real.train.y[:, 0], X[:, 0] / 3)
    several = loaded(tmp_path, targets="labels", y_train=X[:, :2] > 0, y_test=X[:, :2] > 0, **arrays)
    assert np.array_equal(several.train.y, X[:, :2] > 0)


def test_what_is_missing_or_damaged_is_one_line(tmp_path):
    assert "has no array 'y'; there are 'x', 'z': name them" in refused(tmp_path, x=X, z=Y)
    assert "has no array 'y_test'" in refused(tmp_path, **{k: v for k, v in SPLIT.items() if k != "y_test"})
    assert "'x' is [20, 3], 'y' is [19]" in refused(tmp_path, x=X, y=Y[:19])
    assert "Python objects" in refused(tmp_path, x=np.array([{}, 3], object), y=Y[:2])
    assert "holds Python objects" in refused(tmp_path, np.savez_compressed, x=np.array([{}], object), y=Y[:1])
    loaded(tmp_path, **SPLIT)
    whole = (tmp_path / "data.npz").read_bytes()
    for content, said in ((whole[:-40], "cannot be read"), (b"", "cannot be read"), (None, "does not exist")):
        (tmp_path / "data.npz").unlink()
        if content is not None:
            (tmp_path / "data.npz").write_bytes(content)
        with pytest.raises(UsageError, match=said):
            load("npz", tmp_path, False, {"file": "data.npz"})
