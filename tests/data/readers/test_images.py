"""fedddp.data.readers.images: folders of images, a folder for each class."""

import numpy as np
import pytest
import torch
from PIL import Image

from fedddp.config import UsageError
from fedddp.data import load


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(folder, pixels, name="0.png"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def folder(tmp_path):
    """Grey images of 5 x 4: 6 and 2 cats, 3 and 1 dogs, every one different."""
    for part, seed, numbers in (("train", 0, {"dog": 3, "cat": 6}), ("test", 100, {"dog": 1, "cat": 2})):
        for name, n in numbers.items():
            for i in range(n):
                save(tmp_path / part / name, drawn(5, 4, seed=seed + i + 50 * (name == "dog")), f"{i}.png")
    return tmp_path


def refused(folder, **args):
    with pytest.raises(UsageError) as error:
        load("imagefolder", folder, False, args)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix("data.name='imagefolder': ")


def test_classes_are_folders_in_sorted_order_and_pixels_stay_what_they_are(folder, caplog):
    data = load("imagefolder", folder, False, {})
    assert data.train.x.dtype == torch.uint8
    assert data.train.x.shape == (9, 1, 5, 4)
    assert data.train.y.tolist() == [0] * 6 + [1] * 3
    assert data.test.y.tolist() == [0, 0, 1]
    assert np.array_equal(data.train.x[7, 0], drawn(5, 4, seed=51))
    assert np.array_equal(data.test.x[1, 0], drawn(5, 4, seed=101))
    assert [r.message for r in caplog.records] == ["labels are cat, dog, numbered in this order as the classes 0 to 1"]


def test_colours_and_sizes_as_asked(folder):
    save(folder / "train" / "cat", drawn(8, 8, 3), "0.png")
    assert "cat/1.png: is 5 x 4, the first image 8 x 8" in refused(folder)
    data = load("imagefolder", folder, False, {"resize": [3, 2]})
    assert data.train.x.shape == (9, 3, 3, 2)
    assert torch.equal(data.train.x[8, 0], data.train.x[8, 2])
    assert load("imagefolder", folder, False, {"resize": [3, 2], "channels": 1}).test.x.shape == (3, 1, 3, 2)


def test_a_folder_without_train_and_test_is_divided_by_seed(folder):
    one = [load("imagefolder", folder / "train", False, {"test_fraction": 0.4, "seed": s}) for s in (1, 1, 2)]
    assert torch.equal(one[0].test.x, one[1].test.x)
    assert len(one[0].train) + len(one[0].test) == 9
    assert len({tuple(data.test.x.flatten().tolist()) for data in one}) == 2
    everything = torch.cat([one[0].train.x, one[0].test.x]).flatten(1)
    assert len(everything.unique(dim=0)) == 9


def test_an_image_of_another_size_is_named(folder):
    save(folder / "train" / "dog", drawn(4, 4), "1.png")
    path = folder / "train" / "dog" / "1.png"
    assert refused(folder) == f"{path}: is 4 x 4, the first image 5 x 4; set data.args.resize=[H,W]"


def test_a_colour_among_shades_of_grey_is_named(folder):
    save(folder / "test" / "cat", drawn(5, 4, 3), "1.png")
    assert refused(folder).startswith(f"{folder}/test/cat/1.png: is in colour (RGB)")


@pytest.mark.parametrize("size", [0, 20, 60])
def test_half_an_image_is_named(folder, size):
    path = folder / "train" / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:size])
    assert refused(folder).startswith(f"{path}: is no image that can be read (")


def test_one_class_is_refused(folder, tmp_path):
    save(folder / "one" / "cat", drawn(5, 4))
    (folder / "one" / "dog").mkdir()
    assert "1 folders with images (cat); expected one for each class" in refused(folder / "one")
    assert "0 folders with images" in refused(folder / "one" / "dog")
    assert "cannot be read (No such file or directory)" in refused(folder / "nowhere")
