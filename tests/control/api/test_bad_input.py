"""Invalid input of every kind returns a problem document with a stable code, and nothing is stored."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from support.served import Served, problem, served

NO_JOB = "job_01JZZZZZZZZZZZZZZZZZZZZZZZ"
NO_SCRIPT = "f" * 64


def archive(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zipped:
        for name, data in files.items():
            zipped.writestr(name.replace("_", "."), data)
    return out.getvalue()


async def nothing_kept(api: Served) -> None:
    assert (await api.http.get("/v1/scripts")).json()["scripts"] == []
    assert (await api.http.get("/v1/jobs")).json()["jobs"] == []
    data_dir = api.services.settings.data_dir
    assert [path for name in ("run/uploads", "blobs") for path in (data_dir / name).rglob("*")] == []


CODE = {"code": "x", "language": "python"}
TWO_TEXTS = {"a.txt": "x", "b.txt": "y"}
BODIES = {
    "unknown language": ({"code": "x", "language": "cobol"}, 422, "unknown_language", "cobol"),
    "unknown image": ({**CODE, "image": "windows"}, 422, "unknown_image", "windows"),
    "image that is not built": (
        {**CODE, "image": "shell"},
        422,
        "unknown_image",
        "belljar image build shell",
    ),
    "image that is a path": ({**CODE, "image": "../x"}, 422, "unknown_image", "image"),
    "unknown script": ({"script_id": NO_SCRIPT}, 404, "not_found", "GET /v1/scripts"),
    "empty code": ({"code": "", "language": "python"}, 422, "invalid_script", "empty"),
    "no files": ({"files": {}, "language": "python"}, 422, "invalid_script", ""),
    "files without an entrypoint": (
        {"files": TWO_TEXTS, "language": "python"},
        422,
        "invalid_script",
        "",
    ),
    "a file outside": ({"files": {"../main.py": "x"}, "language": "python"}, 422, "invalid_script", ""),
    "nothing to run": ({}, 422, "invalid_option", "script_id"),
    "code without a language": ({"code": "x"}, 422, "invalid_option", "language"),
    "an unknown option": ({"code": "x", "language": "python", "memory": 1}, 422, "invalid_option", "memory"),
}
OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no vcpus": ({"vcpus": 0}, "vcpus"),
    "negative memory": ({"memory_mb": -1}, "memory_mb"),
    "huge memory": ({"memory_mb": 10**9}, "max_memory_mb"),
    "memory beyond any number": ({"memory_mb": 10**400}, "memory_mb"),
    "huge vcpus": ({"vcpus": 1000}, "max_vcpus"),
    "huge disk": ({"disk_mb": 10**8}, "max_disk_mb"),
    "negative time": ({"timeout_seconds": -1}, "timeout_seconds"),
    "huge time": ({"timeout_seconds": 1e9}, "max_timeout_seconds"),
    "text for a number": ({"vcpus": "many"}, "vcpus"),
    "env with NUL": ({"env": {"A": "\0"}}, "NUL"),
    "env of 1 MB": ({"env": {"A": "x" * 1_000_000}}, "bytes"),
    "env with a bad name": ({"env": {"A=B": "x"}}, "A=B"),
    "args with NUL": ({"args": ["\0"]}, "NUL"),
    "a lone surrogate": ({"args": ["\ud800"]}, "args"),
    "stdin that is no base64": ({"stdin_base64": "!"}, "base64"),
    "an artifact outside": ({"artifacts": ["../x"]}, "../x"),
    "a bad label": ({"labels": {"a b": "x"}}, "label"),
    "attempts": ({"max_attempts": 100}, "max_attempts"),
    "egress": ({"egress": "everything"}, "egress"),
}


@pytest.mark.parametrize(("body", "status", "code", "words"), BODIES.values(), ids=BODIES.keys())
async def test_a_submission_of_nothing_that_can_run(
    api: Served, body: dict[str, Any], status: int, code: str, words: str
) -> None:
    detail = problem(await api.http.post("/v1/jobs", json=body), status, code)["detail"]
    assert words in detail
    await nothing_kept(api)


@pytest.mark.parametrize(("options", "words"), OPTIONS.values(), ids=OPTIONS.keys())
async def test_an_option_that_no_job_may_have(api: Served, options: dict[str, Any], words: str) -> None:
    body = json.dumps({"code": "x", "language": "python", **options})
    response = await api.http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    found = problem(response, 422, "invalid_option")
    assert words in found["detail"]
    assert found.get("option", "stdin_base64") in options
    assert (await api.http.get("/v1/jobs")).json()["jobs"] == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_that_are_none(api: Served, number: str) -> None:
    content = f'{{"code": "x", "language": "python", "timeout_seconds": {number}}}'
    response = await api.http.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    assert response.json()["code"] in ("invalid_option", "invalid_request")
    assert response.status_code in (400, 422)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"code=print(1)", b"\xff\xfe", b"[1]", b'"x"', b"null", b"[" * 100_000, b"9" * 5000]
)
async def test_a_body_that_is_no_json_object(api: Served, content: bytes) -> None:
    response = await api.http.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    assert "JSON" in problem(response, 400, "invalid_request")["detail"]


async def test_json_that_is_sent_as_something_else(api: Served) -> None:
    response = await api.http.post("/v1/jobs", content=b"{}", headers={"Content-Type": "text/plain"})
    assert "Content-Type: application/json" in problem(response, 400, "invalid_request")["detail"]


@pytest.mark.parametrize("path", [f"/v1/jobs/{NO_JOB}", "/v1/jobs/x", "/v1/jobs/%00", f"/v1/jobs/{NO_JOB}/logs"])
async def test_an_unknown_job(api: Served, path: str) -> None:
    assert "GET /v1/jobs" in problem(await api.http.get(path), 404, "not_found")["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"/v1/jobs/{NO_JOB}/cancel"),
        ("POST", "/v1/jobs/..%2F..%2Fetc/cancel"),
        ("GET", f"/v1/jobs/{NO_JOB}/artifacts"),
        ("GET", f"/v1/jobs/{NO_JOB}/artifacts/a/../../../etc/passwd"),
        ("GET", f"/v1/scripts/{NO_SCRIPT}"),
        ("DELETE", f"/v1/scripts/{NO_SCRIPT}"),
        ("DELETE", "/v1/scripts/x"),
        ("POST", f"/v1/scripts/{NO_SCRIPT}/run"),
        ("DELETE", "/v1/keys/x"),
        ("GET", "/v2/jobs"),
        ("GET", "/v1"),
    ],
)
async def test_what_is_not_there(api: Served, method: str, path: str) -> None:
    problem(await api.http.request(method, path), 404, "not_found")


async def test_a_method_that_a_route_does_not_take(api: Served) -> None:
    response = await api.http.put("/v1/jobs")
    assert "PUT" in problem(response, 405, "method_not_allowed")["detail"]
    assert response.headers["allow"]


@pytest.mark.parametrize(
    "query",
    ["status=sleeping", "limit=0", "limit=501", "limit=x", "cursor=" + "x" * 501, "label=" + "x" * 401],
)
async def test_a_bad_query(api: Served, query: str) -> None:
    found = problem(await api.http.get(f"/v1/jobs?{query}"), 422, "invalid_option")
    assert found["option"] == query.partition("=")[0]


@pytest.mark.parametrize("wait", ["-1", "3601", "nan", "inf", "soon"])
async def test_a_wait_that_is_no_time(api: Served, wait: str) -> None:
    job = await api.submit()
    response = await api.http.get(f"/v1/jobs/{job['id']}", params={"wait": wait})
    assert problem(response, 422, "invalid_option")["option"] == "wait"


async def test_a_cursor_of_another_server(api: Served) -> None:
    assert "next_cursor" in problem(await api.http.get("/v1/scripts?cursor=abc"), 400, "invalid_request")["detail"]


UPLOADS = {
    "empty": (b"", "a.py", "invalid_script", "empty"),
    "of an unknown language": (b"x", "a.xyz", "unknown_language", ""),
    "without a name or language": (b"print(1)", "script", "unknown_language", ""),
    "an archive without an entrypoint": (archive(a_txt=b"x"), "a.zip", "invalid_script", "entrypoint"),
    "an archive that is cut off": (archive(main_py=b"x" * 500)[:-30], "a.zip", "invalid_script", ""),
    "an archive that leaves its folder": (archive(**{"../x_py": b""}), "a.zip", "invalid_script", ""),
    "another kind of archive": (b"Rar!\x1a\x07\x00" + b"x" * 50, "a.rar", "invalid_script", ".zip"),
}


@pytest.mark.parametrize(("data", "name", "code", "words"), UPLOADS.values(), ids=UPLOADS.keys())
async def test_an_upload_that_is_no_script(api: Served, data: bytes, name: str, code: str, words: str) -> None:
    response = await api.http.post("/v1/scripts", files={"script": (name, data)})
    assert words in problem(response, 422, code)["detail"]
    await nothing_kept(api)


async def test_a_script_need_not_be_utf8(api: Served) -> None:
    response = await api.http.post("/v1/scripts", files={"script": ("a.py", b"# \xff\xfe\nprint(1)\n")})
    assert response.status_code == 201


@pytest.mark.parametrize(
    "request_",
    [
        {"content": b"print(1)"},
        {"json": {}},
        {"data": {"language": "python"}},
        {"files": {"file": ("a.py", b"x")}},
        {"files": {"script": ("a.py", b"x")}, "data": {"name": "x"}},
        {"files": {"script": ("a.py", b"x"), "language": ("b", b"python")}},
        {"data": {"script": "print(1)"}},
        {"content": b"--x\r\n", "headers": {"Content-Type": "multipart/form-data"}},
        {"content": b"junk", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"files": {"script": ("a.py", b"x")}, "data": {"language": "x" * 5000}},
    ],
)
async def test_a_form_that_is_none(api: Served, request_: dict[str, Any]) -> None:
    problem(await api.http.post("/v1/scripts", **request_), 400, "invalid_request")
    await nothing_kept(api)


async def test_an_upload_over_the_limit_is_refused_while_it_streams(tmp_path: Path) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="script"; filename="a.py"\r\n\r\n'
        for _ in range(60):
            sent += 1
            yield bytes(1 << 20)
        yield b"\r\n--x--\r\n"

    async with served(tmp_path) as api:
        form = {"Content-Type": "multipart/form-data; boundary=x"}
        response = await api.http.post("/v1/scripts", content=endless(), headers=form)
        assert "max_upload_mb" in problem(response, 413, "too_large")["detail"]
        assert 50 < sent < 54
        await nothing_kept(api)


async def test_an_upload_just_over_the_limit_is_refused(api: Served) -> None:
    response = await api.http.post("/v1/scripts", files={"script": ("a.py", b"#" * ((1 << 20) + 1))})
    problem(response, 413, "too_large")
    await nothing_kept(api)
    assert (await api.http.post("/v1/scripts", files={"script": ("a.py", b"#" * (1 << 20))})).status_code == 201


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/keys"])
async def test_a_json_body_without_end_is_refused_while_it_streams(tmp_path: Path, path: str) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'{"code": "'
        while True:
            sent += 1
            yield b"x" * (1 << 20)

    async with served(tmp_path, max_upload_mb=1) as api:
        response = await api.http.post(path, content=endless(), headers={"Content-Type": "application/json"})
        problem(response, 413, "too_large")
        assert sent < 40


@pytest.mark.root
async def test_an_upload_to_a_full_disk_is_refused(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tmp_path / "data"
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))  # where forms are received
    async with served(data_dir) as api:
        response = await api.http.post("/v1/scripts", files={"script": ("a.py", bytes(3 << 20))})
        assert "free some space" in problem(response, 507, "disk_full")["detail"]
        await nothing_kept(api)


async def test_a_bug_is_a_problem_document_that_tells_nothing(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr(api.services.nodes, "list", broken)
    with structlog.testing.capture_logs() as log:
        found = problem(await api.http.get("/v1/nodes"), 500, "internal_error")
    assert "hunter2" not in json.dumps(found)
    failures = [(entry["event"], entry["path"]) for entry in log if entry["log_level"] == "error"]
    assert failures == [("unhandled_exception", "/v1/nodes")]
    assert found["request_id"] in found["detail"]
