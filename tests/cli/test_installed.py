"""What an installed package has besides its modules: every file that pyproject.toml names, and no second copy."""

import tomllib
from pathlib import Path

import fedddp

PACKAGE = Path(fedddp.__file__).parent
ROOT = PACKAGE.parent


def test_every_file_of_the_package_that_is_no_module_is_package_data():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folders = {name: ROOT.joinpath(*name.split(".")) for name in declared}
    taken = {
        path for name, patterns in declared.items() for pattern in patterns for path in folders[name].glob(pattern)
    }
    there = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    there |= set((PACKAGE / "configs").rglob("*.toml"))  # behind a link, which rglob does not follow by itself
    data = {path for path in there if path.suffix != ".py" or PACKAGE / "templates" in path.parents}
    assert taken == data
    assert len(taken) > 40


def test_the_configurations_of_the_package_are_those_of_the_repository():
    assert (PACKAGE / "configs").is_symlink()
    assert (PACKAGE / "configs").resolve() == ROOT / "configs"
