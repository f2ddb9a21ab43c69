"""The names of the HTTP API: routes, parameters, statuses and fields, held to the list in names.txt.

Clients depend on them. A new name is added to the list, by running this module; an old one is never removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from belljar.control.api.app import create_app
from belljar.control.projects.keys import Key
from belljar.control.store.nodes import Node
from belljar.model.job import Job
from belljar.model.script import Script

NAMES = Path(__file__).with_name("names.txt")


def routes(description: dict[str, Any]) -> Iterator[str]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parameters = [each["name"] for each in operation.get("parameters", ()) if each["in"] != "path"]
            yield " ".join([f"{method.upper()} {path}:", *parameters, "->", *sorted(operation["responses"])])


def schemas(description: dict[str, Any]) -> Iterator[str]:
    """Yield the fields of what the API takes and returns; what it returns is in no schema of OpenAPI."""
    found: dict[str, Any] = dict(description["components"]["schemas"])
    for model in (Job, Script, Key, Node):
        schema = model.model_json_schema(mode="serialization")
        found |= {model.__name__: schema, **schema.get("$defs", {})}
    for name, schema in sorted(found.items()):
        values = sorted(schema.get("properties", ())) or schema.get("enum", ())
        yield " ".join([f"{name}:", *map(str, values)])


def names() -> str:
    description = create_app(None).openapi()
    return "\n".join([*routes(description), "", *schemas(description), ""])


def test_the_names_of_the_api_are_those_of_the_list() -> None:
    assert names() == NAMES.read_text(), "run tests/control/api/test_names.py to write the list, and look at its diff"


if __name__ == "__main__":
    NAMES.write_text(names())
