"""Request bodies: hostile ones are refused at once and cost no memory, large valid ones are accepted."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from belljar.control.api.request_limits import BodyBudget, ConcurrencyLimit, RequestCount
from belljar.control.jobs.blob_names import stdin_blob
from belljar.model.errors import ServerBusy, TooManyRequests
from belljar.model.job_options import MAX_STDIN_BYTES
from belljar.scripts import archive, prepare
from support.paths import TESTS
from support.served import Served, problem

pytestmark = pytest.mark.process

CODE = {"code": "print(1)", "language": "python"}
JSON = {"Content-Type": "application/json"}
MB = 1024 * 1024


def test_hostile_bodies_are_refused_within_little_memory(api: Served, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "support.under_limit", str(tmp_path / "own")]
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    (tmp_path / "own").mkdir()
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert len(found) > 18
    assert {tuple(answer) for answer in found.values()} <= {(422, "invalid_option"), (400, "invalid_request")}


async def post(api: Served, body: dict[str, Any]) -> httpx.Response:
    return await api.http.post("/v1/jobs", content=json.dumps(body, ensure_ascii=False), headers=JSON)


async def test_standard_input_of_the_largest_size_is_kept_as_it_was_sent(api: Served) -> None:
    data = os.urandom(MAX_STDIN_BYTES // 16) * 16
    job = (await post(api, {**CODE, "stdin_base64": base64.b64encode(data).decode()})).json()
    assert job["stdin_bytes"] == MAX_STDIN_BYTES
    assert await api.services.blobs.get_bytes(stdin_blob(job["id"])) == data
    text = "é\n" * (MAX_STDIN_BYTES // 3)
    job = (await post(api, {**CODE, "stdin": text})).json()
    assert await api.services.blobs.get_bytes(stdin_blob(job["id"])) == text.encode()


async def test_standard_input_goes_with_a_script_too(api: Served) -> None:
    script = await api.upload()
    for body in ({"stdin": "x" * 200_000}, {"stdin_base64": base64.b64encode(b"x" * 200_000).decode()}):
        job = (await api.http.post(f"/v1/scripts/{script}/run", json=body)).json()
        assert await api.services.blobs.get_bytes(stdin_blob(job["id"])) == b"x" * 200_000


@pytest.mark.parametrize("name", ["stdin", "stdin_base64"])
async def test_standard_input_over_the_limit_is_refused(api: Served, name: str) -> None:
    data = "A" * (MAX_STDIN_BYTES + 4) if name == "stdin" else base64.b64encode(bytes(MAX_STDIN_BYTES + 1)).decode()
    assert problem(await post(api, {**CODE, name: data}), 422, "invalid_option")["option"] == name


async def test_two_long_standard_inputs_are_refused(api: Served) -> None:
    body = {**CODE, "stdin": "x" * 100_000, "stdin_base64": "AAAA" * 50_000}
    assert "not both" in problem(await post(api, body), 422, "invalid_option")["detail"]
    body = {**CODE, "stdin": "x" * 100_000, "stdin_base64": "AAAA"}
    assert "not both" in problem(await post(api, body), 422, "invalid_option")["detail"]


async def test_code_over_the_limit_is_sent_elsewhere(api: Served) -> None:
    response = await post(api, {"code": "#" * (4 << 20) + "\n", "language": "python"})
    assert "POST /v1/scripts" in problem(response, 413, "too_large")["detail"]


async def test_a_body_over_the_limit_is_refused_by_its_length(api: Served) -> None:
    response = await api.http.post("/v1/jobs", content=b" " * (24 << 20) + b"{}", headers=JSON)
    assert problem(response, 413, "too_large")["limit"] == 24 << 20


LONG: dict[str, tuple[dict[str, Any], str]] = {
    "args": ({"args": ["x"] * 4097}, "args"),
    "env": ({"env": {f"A{n}": "x" for n in range(8001)}}, "env"),
    "labels": ({"labels": {f"A{n}": "x" for n in range(33)}}, "labels"),
    "artifacts": ({"artifacts": ["x"] * 65}, "artifacts"),
    "egress": ({"egress": ["a.example"] * 257}, "egress"),
    "egress as text": ({"egress": "a.example," * 20_000}, "egress"),
    "image": ({"image": "x" * 5000}, "image"),
    "key": ({"idempotency_key": "x" * 100_000}, "idempotency_key"),
    "script": ({"script_id": "x" * 5000}, "script_id"),
    "nested": ({"args": [["x"]]}, "args"),
    "object for a list": ({"args": {"a": "b"}}, "args"),
    "list for text": ({"image": ["a"]}, "image"),
    "number in an object": ({"env": {"A": 1}}, "env"),
}


@pytest.mark.parametrize(("options", "name"), LONG.values(), ids=LONG.keys())
async def test_lengths_and_kinds_are_checked_first(api: Served, options: dict[str, Any], name: str) -> None:
    assert problem(await post(api, {**CODE, **options}), 422, "invalid_option")["option"] == name


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"labels": {"A": "\ud800"}}, "labels"),
        ({"labels": {"\ud800": "x"}}, "labels"),
        ({"env": {"A": "\ud800"}}, "env"),
        ({"args": ["\udfff"]}, "args"),
        ({"image": "\ud800"}, "image"),
        ({"language": "\ud800"}, "language"),
        ({"entrypoint": "\ud800", "files": {"a.py": "x"}, "code": None}, "entrypoint"),
        ({"files": {"\ud800": "x"}, "code": None}, "files"),
        ({"files": {"a.py": "\ud800"}, "code": None}, "files"),
        ({"code": "\ud800"}, "code"),
        ({"stdin": "\ud800"}, "stdin"),
        ({"script_id": "\ud800", "code": None}, "script_id"),
        ({"idempotency_key": "\ud800"}, "idempotency_key"),
        ({"egress": "\ud800"}, "egress"),
        ({"artifacts": ["\ud800"]}, "artifacts"),
        ({"\ud800": 1}, "?"),
    ],
)
async def test_half_a_surrogate_pair_is_refused_wherever_it_stands(
    api: Served, options: dict[str, Any], name: str
) -> None:
    response = await api.http.post("/v1/jobs", content=json.dumps({**CODE, **options}), headers=JSON)
    assert problem(response, 422, "invalid_option")["option"] == name


async def test_environments_are_bounded_with_the_images_own(api: Served) -> None:
    assert (await post(api, {**CODE, "env": {f"A{n}": "x" for n in range(7900)}})).status_code == 202


async def test_a_page_of_long_jobs_has_fewer_and_all_are_found(api: Served) -> None:
    ids = [(await api.submit(args=["x" * 100_000] * 9))["id"] for _ in range(4)]
    found: list[str] = []
    cursor: str | None = None
    pages = 0
    while pages == 0 or cursor is not None:
        page = (await api.http.get("/v1/jobs", params={"limit": 50, **({"cursor": cursor} if cursor else {})})).json()
        found += [job["id"] for job in page["jobs"]]
        cursor, pages = page["next_cursor"], pages + 1
    assert found == ids[::-1]
    assert pages > 1


# --- what is in flight ----------------------------------------------------------------------------------------------


async def test_bodies_in_flight_are_bounded_over_all_and_for_each_key() -> None:
    budget = BodyBudget(100, wait_seconds=0)
    async with budget.lease("a", 50), budget.lease("b", 30):
        with pytest.raises(TooManyRequests) as refused:
            async with budget.lease("a", 10):
                pass
        assert refused.value.details["retry_after"] > 0
        with pytest.raises(ServerBusy):
            async with budget.lease("c", 30):
                pass
        async with budget.lease("c", 8):
            pass
    async with budget.lease("a", 50):
        pass


async def test_a_body_waits_for_room_and_a_lease_is_released_once() -> None:
    budget = BodyBudget(100, wait_seconds=60)
    entered = asyncio.Event()

    async def second() -> None:
        async with budget.lease("a", 50):
            entered.set()

    async with budget.lease("a", 50) as lease:
        waiting = asyncio.create_task(second())
        await asyncio.sleep(0)
        assert not entered.is_set()
        lease.release()
        lease.release()
        await waiting
    async with budget.lease("a", 50):
        pass


async def test_small_bodies_find_room_however_many_keys_hold_large_ones() -> None:
    budget = BodyBudget(64 * MB, wait_seconds=0)
    async with contextlib.AsyncExitStack() as stack:
        for key in ("a", "b", "c"):  # all that they can get, in large bodies and in small ones
            for size in (24 * MB, 8 * MB, 1 * MB, 256 * 1024, 64 * 1024):
                with contextlib.suppress(TooManyRequests, ServerBusy):
                    while True:
                        await stack.enter_async_context(budget.lease(key, size))
        async with budget.lease("d", 64 * 1024), budget.lease("a", 0):
            pass
    async with budget.lease("a", 24 * MB), budget.lease("b", 24 * MB):
        pass


def test_requests_of_one_key_are_counted_and_others_find_room() -> None:
    count = RequestCount(16)
    with contextlib.ExitStack() as stack:
        for key, max_leases in (("a", 8), ("b", 4), ("c", 2)):
            for _ in range(max_leases):
                stack.enter_context(count.counted(key))
            with pytest.raises(TooManyRequests), count.counted(key):
                pass
    with count.counted("a"):
        pass


async def test_work_of_one_key_leaves_room_for_another() -> None:
    limit, done = ConcurrencyLimit(3, 2), asyncio.Event()

    async def work() -> None:
        async with limit.slot("a"):
            await done.wait()

    tasks = [asyncio.create_task(work()) for _ in range(20)]
    await asyncio.sleep(0)
    async with asyncio.timeout(30), limit.slot("b"):
        pass
    done.set()
    await asyncio.gather(*tasks)


async def test_slow_uploads_of_one_key_do_not_delay_other_keys(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, begun, unpack = threading.Event(), threading.Semaphore(0), archive.unpack

    def slow(*given: Any, **more: Any) -> None:
        begun.release()
        assert go_on.wait(60)
        unpack(*given, **more)

    monkeypatch.setattr(prepare, "unpack", slow)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as made:
        made.writestr("main.py", "print(1)")
    files = {"script": ("a.zip", packed.getvalue())}
    uploads = [asyncio.create_task(api.http.post("/v1/scripts", files=files)) for _ in range(16)]
    try:
        assert await asyncio.to_thread(begun.acquire, timeout=60)
        async with await api.caller_of("other") as other, asyncio.timeout(60):
            assert (await other.post("/v1/jobs", json=CODE)).status_code == 202
    finally:
        go_on.set()
        assert {answer.status_code for answer in await asyncio.gather(*uploads)} == {201}


async def test_a_waiting_submission_holds_no_memory_for_its_body(api: Served) -> None:
    body = json.dumps({**CODE, "stdin": "x" * (10 << 20)})
    wait = {"wait": 60}
    waiting = [
        asyncio.create_task(api.http.post("/v1/jobs", content=body, headers=JSON, params=wait)) for _ in range(8)
    ]
    while len((await api.http.get("/v1/jobs")).json()["jobs"]) < 8:
        await asyncio.sleep(0.05)
    for job in (await api.http.get("/v1/jobs")).json()["jobs"]:
        await api.http.post(f"/v1/jobs/{job['id']}/cancel")
    assert {(await each).status_code for each in waiting} == {200}
