"""Nothing that is read can run code: no pickle in the package, but for state_dicts by torch's restricted unpickler."""

import ast
from pathlib import Path

import fedddp

FORBIDDEN = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FILES = sorted(Path(fedddp.__file__).parent.rglob("*.py"))


def unsafe(source: str) -> list[str]:
    """Imports of picklers, torch.load without weights_only=True, numpy.load with allow_pickle."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [name for name in names if name.split(".")[0] in FORBIDDEN]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
            keys = {word.arg: word.value for word in node.keywords}
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            restricted = isinstance(keys.get("weights_only"), ast.Constant) and keys["weights_only"].value is True
            if "allow_pickle" in keys or (of_torch and not restricted):
                found.append(ast.unparse(node))
    return found


def test_no_file_of_the_package_unpickles():
    assert len(FILES) > 200
    assert {str(path): bad for path in FILES if (bad := unsafe(path.read_text(encoding="utf-8")))} == {}


def test_what_unpickles_is_seen():
    assert unsafe("import pickle")
    assert unsafe("from pickle import loads")
    assert unsafe("torch.load(f)")
    assert unsafe("torch.load(f, weights_only=False)")
    assert unsafe("np.load(f, allow_pickle=True)")
    assert not unsafe("torch.load(f, weights_only=True); np.load(f); json.load(f)")
