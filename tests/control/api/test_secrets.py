"""/v1/secrets, and jobs that name secrets: no answer and no log has a value, whatever the body was."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import structlog

from belljar.model.secrets import MAX_SECRET_BYTES, SecretUse
from support.served import Served, problem

VALUE = "hunter2-hunter2"


async def put(api: Served, name: str = "TOKEN", **body: Any) -> dict[str, Any]:
    response = await api.http.put(f"/v1/secrets/{name}", json=body or {"value": VALUE})
    assert response.status_code == 200, response.text
    record: dict[str, Any] = response.json()
    return record


async def value_of(api: Served, name: str = "TOKEN", project: str = "default") -> bytes:
    (secret,) = await api.services.secrets.open(project, [SecretUse(name=name, form="file")])
    return secret.value.reveal()


async def test_a_secret_is_set_listed_and_removed(api: Served) -> None:
    first = await put(api)
    assert (first.pop("masked"), first["name"], first["version"]) == (True, "TOKEN", 1)
    second = await put(api, value_base64=base64.b64encode(b"\0\xff12").decode())
    assert second.pop("masked") and second["version"] == 2 and await value_of(api) == b"\0\xff12"
    listing = await api.http.get("/v1/secrets")
    assert listing.json() == {"secrets": [second]} and sorted(second) == ["created_at", "name", "updated_at", "version"]
    assert (await api.http.delete("/v1/secrets/TOKEN")).json() == second
    problem(await api.http.delete("/v1/secrets/TOKEN"), 404, "not_found")
    assert (await api.http.get("/v1/secrets")).json() == {"secrets": []}


async def test_a_short_one_is_said_not_to_be_masked(api: Served) -> None:
    assert (await put(api, value="abc"))["masked"] is False


@pytest.mark.parametrize("text", ["x" * MAX_SECRET_BYTES, "\u0001" * MAX_SECRET_BYTES, "two\nlines\r\n", "é€😀"])
async def test_any_text_up_to_the_limit_is_kept_as_it_is(api: Served, text: str) -> None:
    await put(api, value=text)
    assert await value_of(api) == text.encode()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"value": VALUE, "value_base64": "aGk="}, 422),
        ({"value": VALUE, "more": VALUE}, 422),
        ({VALUE: VALUE}, 422),
        ({"value": ""}, 422),
        ({"value": [VALUE]}, 400),
        ({"value": {VALUE: VALUE}}, 400),
        ({"value": 77123456789}, 422),
        ({"value_base64": f"{VALUE}!"}, 422),
        ({"value": VALUE + "x" * MAX_SECRET_BYTES}, 422),
        ({"value_base64": base64.b64encode(b"hunter2" * 20_000).decode()}, 422),
        ({"value": VALUE * 40_000}, 413),
        ([VALUE], 400),
        (VALUE, 400),
        ({}, 422),
    ],
)
async def test_a_wrong_body_is_refused_without_quoting_it(api: Served, body: Any, status: int) -> None:
    with structlog.testing.capture_logs() as events:
        response = await api.http.put("/v1/secrets/TOKEN", json=body)
    assert response.status_code == status, response.text
    assert response.json()["code"] in ("invalid_option", "invalid_request", "too_large")
    for text in (response.text, repr(events)):
        assert "hunter2" not in text and "77123456789" not in text
    assert (await api.http.get("/v1/secrets")).json() == {"secrets": []}


@pytest.mark.parametrize(
    "raw", [b'{"value": "hunter2', b'{"value": hunter2}', b'{"value": "hunter2\\q"}', b"\xff\xfehunter2"]
)
async def test_broken_json_is_refused_without_quoting_it(api: Served, raw: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    with structlog.testing.capture_logs() as events:
        response = await api.http.put("/v1/secrets/TOKEN", content=raw, headers=headers)
    problem(response, 400, "invalid_request")
    assert "hunter2" not in response.text and "hunter2" not in repr(events)


@pytest.mark.parametrize("name", ["a%2Fb", "..", "a%20b", "x" * 65, "%00", "-a", "a%0Ab"])
async def test_a_name_that_is_no_file_name_is_refused(api: Served, name: str) -> None:
    response = await api.http.put(f"/v1/secrets/{name}", json={"value": VALUE})
    assert response.status_code in (404, 405, 422)
    assert (await api.http.get("/v1/secrets")).json() == {"secrets": []}


async def test_each_project_has_its_own(api: Served) -> None:
    await put(api)
    async with await api.caller_of("other") as other:
        assert (await other.get("/v1/secrets")).json() == {"secrets": []}
        problem(await other.delete("/v1/secrets/TOKEN"), 404, "not_found")
        body = {"code": "print(1)", "language": "python", "secrets": ["TOKEN"]}
        problem(await other.post("/v1/jobs", json=body), 422, "secret_missing")
        assert (await other.put("/v1/secrets/TOKEN", json={"value": "theirs"})).json()["version"] == 1
    assert await value_of(api) == VALUE.encode()


async def test_a_job_names_its_secrets(api: Served) -> None:
    await put(api)
    await put(api, "tls.key")
    named = ["TOKEN", {"name": "TOKEN", "env": "PASSWORD"}, {"name": "tls.key", "as": "file", "env": "KEY_FILE"}]
    job = await api.submit(secrets=named)
    assert job["secrets"] == [
        {"name": "TOKEN", "as": "env", "env": None},
        {"name": "TOKEN", "as": "env", "env": "PASSWORD"},
        {"name": "tls.key", "as": "file", "env": "KEY_FILE"},
    ]
    assert job["mask_secrets"] is True and job["secret_versions"] == {}
    again = await api.http.get(f"/v1/jobs/{job['id']}")
    assert again.json() == job and "hunter2" not in again.text
    resubmitted = await api.submit(secrets=job["secrets"], mask_secrets=False)
    assert (resubmitted["secrets"], resubmitted["mask_secrets"]) == (job["secrets"], False)


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        (["NONE"], 'no secret "NONE"'),
        (["PATH"], "variable PATH"),
        ([{"name": "TOKEN", "env": "LD_PRELOAD"}], "variable LD_PRELOAD"),
        (["tls.key"], "invalid variable name"),
        (["../etc"], "invalid name"),
        ([{"name": "TOKEN", "as": "disk"}], "'env' or 'file'"),
        ([{"name": "TOKEN", "value": "x"}], "unknown option"),
        ([{"name": "TOKEN"}, {"name": "TOKEN"}], "set twice"),
        ([{"name": "TOKEN", "as": "file"}, {"name": "TOKEN", "as": "file"}], "twice"),
        ([{"name": "TOKEN", "env": "GIVEN"}], "set twice"),
        ([{"as": "file"}], "required"),
        ([7], "must be a string"),
        ([{"name": 7}], "must be a string"),
        (["TOKEN"] * 33, "at most 32"),
        ({"TOKEN": "x"}, "takes no object"),
        ("TOKEN", "tuple"),
    ],
)
async def test_secrets_that_a_job_cannot_have_are_refused(api: Served, named: Any, reason: str) -> None:
    await put(api)
    await put(api, "tls.key")
    body = {"code": "print(1)", "language": "python", "env": {"GIVEN": "1"}, "secrets": named}
    response = await api.http.post("/v1/jobs", json=body)
    detail = problem(response, 422, "secret_missing" if named == ["NONE"] else "invalid_option")
    assert reason in detail["detail"] and detail.get("option") in ("secrets", None), detail


async def test_the_same_request_with_the_same_key_is_the_first_job(api: Served) -> None:
    await put(api)
    first = await api.submit(secrets=["TOKEN"], idempotency_key="k")
    await put(api, value="another")
    assert (await api.submit(secrets=[{"name": "TOKEN"}], idempotency_key="k"))["id"] == first["id"]
    body = {"code": "print(1)", "language": "python", "idempotency_key": "k"}
    problem(await api.http.post("/v1/jobs", json=body), 409, "conflict")


async def test_a_lost_key_is_reported_to_the_operator_and_not_to_tenants(api: Served, tmp_path: Path) -> None:
    await put(api)
    api.services.settings.paths.secrets_key.unlink()
    answer = problem(await api.http.put("/v1/secrets/B", json={"value": VALUE}), 503, "secrets_key")
    assert "secrets.key" in answer["detail"]
    async with await api.caller_of("other") as other:
        answer = problem(await other.put("/v1/secrets/B", json={"value": VALUE}), 503, "secrets_key")
        assert answer["detail"] == "the server cannot read its secrets; tell its operator"


async def test_no_file_of_the_data_folder_has_the_value(api: Served) -> None:
    await put(api)
    await api.submit(secrets=["TOKEN"])
    files = [path for path in api.services.settings.data_dir.rglob("*") if path.is_file()]
    assert len(files) > 2
    assert all(VALUE.encode() not in path.read_bytes() for path in files)


async def test_the_description_has_both_forms(api: Served) -> None:
    document = (await api.http.get("/openapi.json")).json()
    assert {"put", "delete"} <= document["paths"]["/v1/secrets/{name}"].keys()
    schemas = document["components"]["schemas"]
    as_text, as_object = schemas["JobRequest"]["properties"]["secrets"]["items"]["anyOf"]
    assert as_text["type"] == "string" and as_object == {"$ref": "#/components/schemas/SecretUse"}
    assert schemas["SecretUse"]["properties"].keys() == {"name", "as", "env"}
    assert "hunter2" not in json.dumps(document)
