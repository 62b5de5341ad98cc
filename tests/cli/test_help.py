"""What help says of configuration keys: few lines, each key once, and all that the schema has."""

import json
import re

import pytest

from fedddp.cli.help import described
from fedddp.cli.main import main
from fedddp.cli.reference import FILE, reference
from fedddp.config import Config, build, nested
from fedddp.registry.choice import fields_of, keys_of
from fedddp.registry.spelling import SHORT
from tools.reference import FIRST, text


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


def keys_in(lines):
    """The keys that lines begin with, in order."""
    return [line.split("=")[0].strip().removeprefix("--") for line in lines if line.startswith("  --") and "=" in line]


def test_the_reference_is_in_step_with_the_schema():
    assert FILE.read_text(encoding="utf-8") == text(), "run python -m tools.reference"


def test_every_key_of_the_schema_is_in_the_reference_with_who_has_it():
    known = reference()
    assert {key.name for key in known.keys} == {key for key, _ in keys_of(Config)}
    assert list(known.sections) == list(fields_of(Config))
    assert all(known.sections.values())
    for key in known.keys:
        for choice, names in key.when.items():
            assert set(names) < set(known.choices[choice].names)


def test_defaults_of_the_reference_are_those_of_the_schema():
    """A configuration that says every default, under every choice, is the one that says none."""
    known = reference()
    for path, choice in known.choices.items():
        for name in choice.names if path not in ("data", "algorithm.inner") else ():
            keys = [k for k in known.below(path) if name in k.had_by(path) and k.name.rpartition(".")[0] == path]
            said = {k.name: k.default for k in keys if k.default is not None}
            chosen = {f"{path}.name": name}
            assert build(nested({**chosen, **said})) == build(nested(chosen)), (path, name)


def test_the_servers_defaults_stand_beside_the_clients():
    having = [key for key in reference().keys if "adam" in key.had_by(key.choice)]
    found = {key.name: key.default for key in having if key.name.endswith(".beta2")}
    assert found == {"algorithm.server_optimizer.beta2": 0.99, "client.optimizer.beta2": 0.999}


def test_help_of_train_is_short_and_has_the_keys_that_one_sets_first(capsys):
    assert main(["train", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 75
    assert max(map(len, lines)) <= 100
    assert set(keys_in(lines)) >= {key for keys in FIRST.values() for key in keys}
    for form in ("rounds", "lr", "clients", "epochs", "batch-size", "seed"):
        assert f"also --{form}" in " ".join(" ".join(lines).split())


def test_help_of_a_choice_has_its_keys_once():
    lines = described("algorithm.scaffold").splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    keys = keys_in(lines)
    assert len(keys) == len(set(keys))
    optimizer = {k.name for k in reference().keys if k.name.startswith("algorithm.server_optimizer.")}
    own = {"name", "weighting", "control_weighting", "option"}
    assert set(keys) == {f"algorithm.{key}" for key in own} | optimizer


@pytest.mark.parametrize("section", fields_of(Config))
def test_help_of_a_section_has_every_choice_and_every_key_once(section, capsys):
    lines = described(section).splitlines()
    keys = keys_in(lines)
    assert len(keys) == len(set(keys))
    assert set(keys) == {key.name for key in reference().below(section)}
    choice = reference().choices.get(section)
    for name in choice.names if choice else ():
        assert any(line.startswith(f"      {name} ") for line in lines)
    assert main(["train", "--help", section]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_a_key_has_each_default_with_who_has_it():
    text = " ".join(described("client.optimizer").split())
    assert "--client.optimizer.lr=float learning rate [0.1 sgd; 0.001 adam, adamw; 0.01 adagrad, yogi]" in text


def test_help_of_a_key_a_short_form_and_a_name_alone():
    (line,) = described("run.rounds").splitlines()
    assert line.split() == ["--run.rounds=int", "T,", "number", "of", "rounds", "[10]"]
    for form, key in SHORT.items():
        if form not in reference().sections:
            assert described(form) == described(key)
    assert described("scaffold") == described("algorithm.scaffold")
    assert keys_in(described("alpha").splitlines()) == ["data.partition.alpha", "model.lora.alpha", "algorithm.alpha"]


def test_help_of_a_sweep_has_the_keys_of_its_section(capsys):
    assert main(["sweep", "--help"]) == 0
    assert "--sweep.nproc=int" in capsys.readouterr().out


def valid(schema, value):
    """Whether ``value`` is as ``schema`` says, of the words of JSON Schema that ours uses."""
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    kind = schema.get("type")
    if kind and (not isinstance(value, kinds[kind]) or (kind in ("integer", "number") and isinstance(value, bool))):
        return False
    if "anyOf" in schema and not any(valid(one, value) for one in schema["anyOf"]):
        return False
    if "pattern" in schema and not re.search(schema["pattern"], str(value)):
        return False
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return False
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, above = schema.get("minimum", value), schema.get("exclusiveMinimum")
        return low <= value <= schema.get("maximum", value) and (above is None or value > above)
    if not isinstance(value, dict):
        return True
    properties = schema.get("properties", {})
    known = all(valid(properties[key], value[key]) for key in value.keys() & properties.keys())
    others = schema.get("additionalProperties", True) or value.keys() <= properties.keys()
    needed = value.keys() >= set(schema.get("required", ()))
    named = all(valid(schema.get("propertyNames", {}), key) for key in value)
    rules = all(valid(rule["then"], value) for rule in schema.get("allOf", ()) if valid(rule["if"], value))
    return known and others and needed and named and rules


@pytest.fixture
def schema(capsys):
    assert main(["schema"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_schema_for_editors_takes_the_configurations_that_come_with_the_package(schema):
    from fedddp.config import read_toml
    from fedddp.registry.shipped import shipped

    tables = {name: read_toml(path) for name, path in shipped().items() if not name.startswith("sweeps/")}
    assert len(tables) > 30
    assert [name for name, table in tables.items() if not valid(schema, table)] == []


@pytest.mark.parametrize(
    "table",
    [
        {"rnu": {}},
        {"run": {"ronds": 5}},
        {"run": {"rounds": "5"}},
        {"run": {"rounds": 0}},
        {"run": {"device": "tpu"}},
        {"client": {"optimizer": {"name": "sdg"}}},
        {"client": {"optimizer": {"name": "adam", "momentum": 0.9}}},
        {"algorithm": {"name": "fedprox", "option": 1}},
        {"data": {"partition": {"name": "iid", "alpha": 0.5}}},
        {"evaluate": {"target_accuracy": "on"}},
    ],
)
def test_the_schema_for_editors_refuses_mistakes(schema, table):
    assert not valid(schema, table)


@pytest.mark.parametrize(
    "table",
    [
        {"data": {"partition": {"alpha": 0.5}}},  # the name is in another file
        {"client": {"optimizer": {"name": "mine.optimizers:Slow", "patience": 3}}},
        {"algorithm": {"name": "fedprox", "mu": 0.1, "server_optimizer": {"name": "adam", "beta2": 0.9}}},
        {"algorithm": {"name": "personal", "inner": {"name": "ditto", "lam": 0.1}}},
        {"evaluate": {"target_accuracy": "off"}},
        {"data": {"name": "mine:Set", "args": {"rings": 4}}},
    ],
)
def test_the_schema_for_editors_takes_what_a_configuration_may_be(schema, table):
    assert valid(schema, table)
