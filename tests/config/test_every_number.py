"""Every number of the configuration has a lower and an upper bound: a key cannot come without."""

import inspect
import typing

import pytest
from pydantic import TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError

from fedddp.data import DATASETS
from tools.reference import build

KINDS = ("integer", "number")
BOUNDS = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")


def unbounded(schema):
    """The numbers in a JSON schema without one of its bounds."""
    if isinstance(schema, list):
        return [found for one in schema for found in unbounded(one)]
    if not isinstance(schema, dict):
        return []
    own = schema.get("type") in KINDS and "enum" not in schema
    lacks = own and not all(any(name in schema for name in side) for side in BOUNDS)
    return [schema] * lacks + [found for name, one in schema.items() if name != "default" for found in unbounded(one)]


REFERENCE = build()
ROWS = {f"{row['name']} {row.get('when', '')}": row["type"] for row in (*REFERENCE["keys"], *REFERENCE["sweep"])}


def test_every_number_among_the_keys_has_bounds():
    assert len(ROWS) > 200
    assert {key: found for key, schema in ROWS.items() if (found := unbounded(schema))} == {}


@pytest.mark.parametrize("name", DATASETS)
def test_every_number_among_the_arguments_of_a_dataset_has_bounds(name):
    load = DATASETS[name]
    hints = typing.get_type_hints(load if inspect.isfunction(load) else type(load).__call__, include_extras=True)
    found = {}
    for argument in hints.keys() - {"return", "root"}:
        try:
            found[argument] = unbounded(TypeAdapter(hints[argument]).json_schema())
        except PydanticSchemaGenerationError:  # Any, or an object that no file holds
            continue
    assert not any(found.values()), found


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 0},
        {"type": "number", "exclusiveMaximum": 1},
        {"anyOf": [{"type": "number"}, {"type": "string"}]},
        {"type": "array", "items": {"type": "integer", "minimum": 1}},
        {"type": "array", "prefixItems": [{"type": "number"}]},
    ],
)
def test_a_number_without_a_bound_is_seen(schema):
    assert unbounded(schema)
