"""The layers: an import points down, aggregation, algorithms and clients do not import each other, one file sends."""

import ast
from pathlib import Path

import pytest

import fedddp

ROOT = Path(fedddp.__file__).parent
LAYERS = [
    ["types", "flat", "rng", "registry", "errors", "launched"],
    ["comm", "data", "models", "tasks", "optim", "sampling"],
    ["algorithms", "aggregation", "clients", "privacy", "secure"],
    ["attacks", "checkpoints", "evaluation", "telemetry"],
    ["config", "federation", "setup"],
    ["api", "train", "trained", "cli"],
]
APART = LAYERS[2]
LAYER = {part: level for level, parts in enumerate(LAYERS) for part in parts}
FILES = sorted(path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] != "templates")  # data
PICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def parsed(path):
    return ast.parse(path.read_text(), str(path))


def part_of(path):
    """``data`` for fedddp/data/batches.py, ``flat`` for fedddp/flat.py, empty for fedddp/__init__.py."""
    inside = path.relative_to(ROOT).with_suffix("").parts
    return "" if inside[0].startswith("__") else inside[0]


def imported(path):
    """Absolute names of the modules, or of the names in modules, that a file imports, wherever in the file."""
    package = ("fedddp", *path.relative_to(ROOT).parent.parts)
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module or ""]))
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def own_imports(path):
    """The parts of the package that a file imports."""
    inside = {name.split(".")[1] for name in imported(path) if name.startswith("fedddp.")}
    return {part for part in inside if not part.startswith("__")}


def mistakes():
    for path in FILES:
        here = part_of(path)
        for there in own_imports(path) - {here}:
            upward = LAYER[there] > LAYER.get(here, len(LAYERS))  # the package itself is above all
            if upward or (here in APART and there in APART):
                yield f"{path.relative_to(ROOT)} imports {there}"


def test_every_part_of_the_package_has_a_layer():
    parts = {part_of(path) for path in FILES} - {""}
    assert parts == set(LAYER)


def test_imports_point_down():
    assert list(mistakes()) == []


def test_the_reader_of_imports_sees_what_is_there():
    """The rule would hold for a reader that finds nothing."""
    assert own_imports(ROOT / "federation.py") >= {"aggregation", "algorithms", "clients", "comm", "types", "telemetry"}
    assert own_imports(ROOT / "data" / "batches.py") == {"rng"}
    assert own_imports(ROOT / "clients" / "sequential.py") >= {"comm", "data", "flat", "optim"}
    assert "telemetry" in own_imports(ROOT / "train.py")
    assert sum(len(own_imports(path)) for path in FILES) > 60


def test_only_comm_knows_torch_distributed():
    def uses(path):
        written = [ast.unparse(node) for node in ast.walk(parsed(path)) if isinstance(node, ast.Attribute)]
        return any(name.startswith("torch.distributed") for name in [*imported(path), *written])

    users = {path.name for path in FILES if uses(path)}
    names = ("collectives", "coordinator", "gloo", "launcher", "machines", "member", "store")
    assert users == {f"{name}.py" for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_arrives_is_unpickled(path):
    """No pickle, no object collective, no torch.save or torch.load, no .npy with objects in it.

    But for the file that a user names as model.weights, by torch's unpickler of tensors and plain containers, and for
    the one that fedddp export writes for others to read so.
    """
    assert not {name.split(".")[0] for name in imported(path)} & PICKLING
    if path == ROOT / "models" / "weights.py":
        assert path.read_text().count('torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)') == 1
        return
    for node in ast.walk(parsed(path)):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        of_ctypes = name == "py_object"
        assert of_ctypes or not name.endswith(("_object", "_object_list")), f"{path.name}:{node.lineno}"
        if isinstance(node, ast.Attribute):
            written = (
                ("torch.load",) if path == ROOT / "cli" / "export" / "formats.py" else ("torch.save", "torch.load")
            )
            assert ast.unparse(node) not in written, f"{path.name}:{node.lineno}"
        if isinstance(node, ast.keyword):
            assert node.arg not in ("allow_pickle", "weights_only"), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400
