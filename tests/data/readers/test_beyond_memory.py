"""Files that ask for more memory than there is, or say more of themselves than they hold: one line each."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from fedddp.data import inputs, load
from fedddp.errors import UsageError


def refused(name, root, code, **args):
    with pytest.raises(UsageError) as told:
        load(name, root, False, args)
    assert told.value.code == code
    assert "\n" not in str(told.value)
    return str(told.value)


def pictures(root):
    for i in range(8):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(root / "ab"[i % 2] / f"{i}.png")


def test_images_of_300_gb(tmp_path):
    pictures(tmp_path)
    told = refused("imagefolder", tmp_path, "inputs-memory", resize=[100_000, 100_000])
    assert "images of 100000 x 100000 take " in told
    assert load("imagefolder", tmp_path, False, {"resize": [4, 4]}).train.x.shape[1:] == (1, 4, 4)


def test_texts_of_any_length(tmp_path, monkeypatch):
    user = {"x": ["abc"] * 5, "y": [*"dedef"]}
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.json").write_text(json.dumps({"users": ["u"], "user_data": {"u": user}}))
    assert load("leaf", tmp_path, False, {}).train.x.shape == (5, 80)
    monkeypatch.setattr(inputs, "memory", lambda: 8 * 5 * 100 - 1)
    assert "5 texts of 100 take " in refused("leaf", tmp_path, "inputs-memory", length=100)


@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed])
def test_an_array_whose_header_says_more_than_there_is(pack, tmp_path):
    packed = io.BytesIO()
    pack(packed, x=np.zeros((6, 3), np.float32), y=np.arange(6) % 2)
    with zipfile.ZipFile(packed) as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    inside["x.npy"] = inside["x.npy"].replace(b"'shape': (6, 3), ", b"'shape': (6,3333)")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in inside.items():
            archive.writestr(name, content)
    assert "x.npy has 72 bytes of numbers, its header says 79,992" in refused("npz", tmp_path, "npz-file", file="a.npz")


def test_a_compressed_array_beyond_memory(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((600, 3), np.float32), y=np.arange(600) % 2)
    assert len(load("npz", tmp_path, False, {"file": "a.npz"}).train) > 400
    monkeypatch.setattr(inputs, "memory", lambda: 5000)
    assert "store it with numpy.savez" in refused("npz", tmp_path, "inputs-memory", file="a.npz")


def test_an_archive_packed_in_an_unknown_way(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((6, 3), np.float32), y=np.arange(6) % 2)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    method = content.index(b"PK\x01\x02") + 10  # of the first file, in the directory at the end
    content[method : method + 2] = b"\x63\x00"
    (tmp_path / "a.npz").write_bytes(content)
    assert "cannot be read" in refused("npz", tmp_path, "npz-file", file="a.npz")
