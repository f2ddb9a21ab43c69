"""Requests made from the API's own description, with and without a key: never a 5xx, never another project's data.

Bodies and parameters follow the schemas, and are then broken in one place or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from belljar.control.api.app import create_app
from belljar.control.projects.scopes import Role
from support.served import Served

DESCRIPTION = create_app(None).openapi()
OPERATIONS = [
    (method, path, operation)
    for path, methods in DESCRIPTION["paths"].items()
    for method, operation in methods.items()
    if not path.endswith("/ports/{port}/{path}") or method == "get"  # all six methods are one function
]
#: What is drawn: requests without a path parameter, which are answered with more than 404, more often.
DRAWN = OPERATIONS + [each for each in OPERATIONS if "{" not in each[1]]
#: Statuses of this test's own server: it has no worker (readyz), and its disk is not full.
NO_WORKER = {("GET", "/readyz"): {503}}
#: A valid body of each schema that has required parts.
VALID: dict[str, dict[str, Any]] = {
    "JobRequest": {"code": "print(1)", "language": "python"},
    "NewKey": {"name": "x"},
    "NewProject": {"name": "x"},
    "ProjectChange": {"suspended": False},
    "ExecRequest": {"args": ["true"]},
    "Extension": {"lifetime_seconds": 60},
    "FilePatch": {"mode": "755"},
    "MemberChange": {"role": "member"},
}
CALLERS = ("operator", "owner", "viewer", "nobody")
#: Examples in all; each takes some milliseconds.
EXAMPLES = 500

_ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just([]), st.just({"x": [{}]})
)
_VALUES = st.recursive(_ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


def strategy(schema: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """Return values of a JSON schema; of what it does not say, anything."""
    if "$ref" in schema:
        return strategy(DESCRIPTION["components"]["schemas"][schema["$ref"].rpartition("/")[2]], depth)
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return st.one_of([strategy(each, depth) for each in schema[several]])
    kind = schema.get("type")
    if kind == "object" and depth < 4:
        properties = {name: strategy(each, depth + 1) for name, each in schema.get("properties", {}).items()}
        required = {name: properties.pop(name) for name in schema.get("required", ()) if name in properties}
        return st.fixed_dictionaries(required, optional=properties)
    if kind == "array" and depth < 4:
        return st.lists(strategy(schema.get("items", {}), depth + 1), max_size=3)
    if kind == "string":
        if "pattern" in schema:
            return st.from_regex(schema["pattern"]).map(lambda text: text[: schema.get("maxLength", 200)])
        return st.text(min_size=schema.get("minLength", 0), max_size=min(schema.get("maxLength", 40), 40))
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", -10), schema.get("maximum", 10**6)
        return st.integers(int(low), int(high)) if kind == "integer" else st.floats(low, high)
    simple = {"boolean": st.booleans(), "null": st.none()}
    return simple.get(str(kind), _VALUES)


def body_of(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return bodies: of the schema, a valid one with one property of the schema changed, or anything."""
    name = schema["$ref"].rpartition("/")[2]
    properties = DESCRIPTION["components"]["schemas"][name].get("properties", {})
    changes = [st.tuples(st.just(key), strategy(each)) for key, each in properties.items()]
    changed = st.one_of(changes).map(lambda change: VALID.get(name, {}) | dict([change]))
    return st.one_of(strategy(schema), changed, st.just(VALID.get(name, {})), _VALUES)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, dict[str, Any], str]:
    """Draw method, path, what to send, and who sends it."""
    method, path, operation = draw(st.sampled_from(DRAWN))
    query: dict[str, str] = {}
    headers: dict[str, str] = {}
    for parameter in operation.get("parameters", ()):
        value = draw(st.one_of(strategy(parameter["schema"]), _ODD))
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", quote(str(value), safe="") or "x")
        elif parameter["in"] == "query" and draw(st.booleans()):
            query[parameter["name"]] = str(value)
        elif parameter["in"] == "header" and draw(st.booleans()):
            headers[parameter["name"]] = quote(str(value))
    if draw(st.booleans()):
        headers["Belljar-Project"] = draw(st.sampled_from(["mine", "default", "nothing", "%"]))
    sent: dict[str, Any] = {"params": query, "headers": headers}
    content = operation.get("requestBody", {}).get("content", {})
    if "application/json" in content:
        body = draw(body_of(content["application/json"]["schema"]))
        if isinstance(body, dict) and body and draw(st.integers(0, 3)) == 0:
            body = body | {draw(st.sampled_from([*body, "unknown"])): draw(_VALUES)}
        sent["json"] = _finite(body)
    elif content:
        sent["files"] = {"script": (draw(st.text(max_size=10)) or "x", draw(st.binary(max_size=200)))}
    return method.upper(), path, sent, draw(st.sampled_from(CALLERS))


def _finite(value: Any) -> Any:
    """Return the value without what JSON cannot say, and without lone surrogates."""
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return 0
    if isinstance(value, dict):
        return {str(_finite(name)): _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value


async def test_no_request_of_the_description_fails_the_server(api: Served) -> None:
    """Run in one event loop and over one data folder: what earlier requests made is there for later ones."""
    async with contextlib.AsyncExitStack() as stack:
        clients = {"operator": api.http, "nobody": await stack.enter_async_context(api.caller())}
        for name, role in (("owner", Role.OWNER), ("viewer", Role.VIEWER)):
            _, secret = await api.services.keys.create("mine", name, role=role)
            clients[name] = await stack.enter_async_context(api.caller(secret))
        loop = asyncio.get_running_loop()
        statuses: set[int] = set()

        async def send(method: str, path: str, sent: dict[str, Any], who: str) -> None:
            sent["params"].pop("wait", None)  # the default is not to wait, but for the machine of a sandbox
            if path == "/v1/sandboxes":
                sent["params"]["wait"] = "0"
            sent["params"].pop("follow", None)
            async with asyncio.timeout(30):
                response = await clients[who].request(method, path, **sent)
            statuses.add(response.status_code)
            allowed = NO_WORKER.get((method, path), set())
            assert response.status_code < 500 or response.status_code in allowed, response.text
            if who == "nobody" and path not in ("/healthz", "/readyz"):
                assert response.status_code == 401, response.text
            if who in ("owner", "viewer"):
                assert '"project":"default"' not in response.text.replace(" ", "")
            if response.status_code >= 400:
                problem = response.json()
                assert problem["code"] and problem["detail"].strip() and "Traceback" not in response.text

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(requests())
        def check(request: tuple[str, str, dict[str, Any], str]) -> None:
            asyncio.run_coroutine_threadsafe(send(*request), loop).result(60)

        await asyncio.to_thread(check)
    # What is drawn depends on every schema of the description: it must get past parsing, rules and lookups, each once.
    assert 200 in statuses and {401, 403, 404, 422} <= statuses


@pytest.mark.parametrize("name", ["NewKey", "JobRequest", "NewProject"])
def test_the_bodies_of_the_description_are_drawn_from_their_schemas(name: str) -> None:
    schema = DESCRIPTION["components"]["schemas"][name]
    drawn: list[Any] = []

    @settings(max_examples=20, database=None, derandomize=True, phases=[Phase.generate])
    @given(strategy(schema))
    def draw(value: Any) -> None:
        drawn.append(value)

    draw()
    assert all(set(value) <= set(schema["properties"]) for value in drawn)
    assert all(set(value) >= set(schema.get("required", ())) for value in drawn)
    assert len({str(value) for value in drawn}) > 10
