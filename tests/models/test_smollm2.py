"""tools.smollm2: what is no model in GGUF is one line, and leaves nothing behind."""

import zipfile

import pytest

from fedddp.config import UsageError
from fedddp.registry.torchvision_operators import declare_if_missing
from tools.smollm2 import convert

declare_if_missing()
pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("gguf")


def wheel(path, *names):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, "nothing")
    return path


@pytest.mark.parametrize("names", [(), ("a.gguf",), ("a.gguf", "b.gguf")])
def test_a_wheel_without_a_model_is_one_line(tmp_path, names):
    with pytest.raises(UsageError, match=r"^--wheel=.*x.whl: holds no model in GGUF that can be read") as error:
        convert(wheel(tmp_path / "x.whl", *names), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.whl"]


def test_a_folder_that_exists_is_not_replaced(tmp_path):
    with pytest.raises(UsageError, match=r"^--out=.*: exists already"):
        convert(wheel(tmp_path / "x.whl", "a.gguf"), tmp_path)
