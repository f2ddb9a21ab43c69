"""The API client against the fake as an ordinary process: requests, their order, and refusals."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from belljar.model.errors import MachineDied, MachineError, MachineTimeout
from belljar.node.machines.firecracker import api as api_module
from belljar.node.machines.firecracker.api import FirecrackerApi
from belljar.node.machines.firecracker.bodies import (
    Drive,
    MachineConfig,
    MemoryBackend,
    RateLimiter,
    SnapshotCreate,
    SnapshotLoad,
    TokenBucket,
    body,
)
from support.firecracker.building import build_fakes, official_description

Opener = Callable[..., AbstractAsyncContextManager[FirecrackerApi]]


@pytest.fixture
def open_api(tmp_path: Path) -> Opener:
    @asynccontextmanager
    async def opened(**faults: object) -> AsyncIterator[FirecrackerApi]:
        firecracker, _ = build_fakes(tmp_path / "programs", **faults)
        process = subprocess.Popen(
            [firecracker, "--id", "a-test", "--api-sock", "api.sock"], cwd=tmp_path, stdout=subprocess.DEVNULL
        )
        try:
            while not _listens(tmp_path / "api.sock"):
                assert process.poll() is None
                await asyncio.sleep(0.01)
            async with FirecrackerApi(tmp_path / "api.sock") as api:
                yield api
        finally:
            process.kill()
            process.wait()

    return opened


def _listens(path: Path) -> bool:
    """Return whether a process listens; the socket's file exists a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


async def test_a_fresh_process_says_what_it_is(open_api: Opener) -> None:
    async with open_api() as api:
        assert await api.version() == "1.16.1"
        answer = await api.call("GET", "/")
        assert (answer["id"], answer["state"]) == ("a-test", "Not started")
        assert api.requests == 2


async def test_a_refusal_carries_firecrackers_own_message(open_api: Opener) -> None:
    async with open_api() as api:
        with pytest.raises(MachineError, match=r"refused PATCH /vm \(400\): .*not supported before starting"):
            await api.pause()


async def test_nothing_happens_out_of_order(open_api: Opener) -> None:
    async with open_api() as api:
        with pytest.raises(MachineError, match="without kernel configuration"):
            await api.call("PUT", "/actions", {"action_type": "InstanceStart"})
        with pytest.raises(MachineError, match="not supported before"):
            await api.create_snapshot(SnapshotCreate(snapshot_path="state", mem_file_path="memory"))
        await api.call("PUT", "/machine-config", body(MachineConfig(vcpu_count=1, mem_size_mib=128)))
        with pytest.raises(MachineError, match="not allowed after configuring"):
            await api.load_snapshot(
                SnapshotLoad(snapshot_path="state", mem_backend=MemoryBackend(backend_path="memory"), resume_vm=True)
            )


async def test_requests_are_held_against_the_official_description(open_api: Opener, tmp_path: Path) -> None:
    if official_description() is None:
        pytest.skip("Firecracker's API description is not at hand; name it in BELLJAR_FIRECRACKER_DESCRIPTION")
    (tmp_path / "disk").write_bytes(bytes(512))
    limiter = RateLimiter(bandwidth=TokenBucket(size=1000, refill_time=1000), ops=TokenBucket(size=1, refill_time=1))
    drive = body(Drive(drive_id="root", path_on_host="disk", is_read_only=True, rate_limiter=limiter))
    async with open_api() as api:
        await api.call("PUT", "/drives/root", drive)
        for wrong, reason in (
            (drive | {"io_engine": "Magic"}, "unknown variant"),
            (drive | {"colour": "red"}, "unknown field `colour`"),
            ({"drive_id": "root"}, "missing field `is_root_device`"),
            (drive | {"rate_limiter": {"bandwidth": {"size": -1, "refill_time": 1}}}, "out of range"),
        ):
            with pytest.raises(MachineError, match=reason):
                await api.call("PUT", "/drives/root", wrong)
        with pytest.raises(MachineError, match="Invalid request method and/or path"):
            await api.call("PUT", "/nowhere", {})


async def test_a_process_that_dies_during_a_request_has_died(open_api: Opener) -> None:
    async with open_api(die_on="/version") as api:
        with pytest.raises(MachineDied, match="lost the connection to Firecracker during GET /version"):
            await api.version()


@pytest.fixture
def hostile(tmp_path: Path) -> Callable[[bytes], AbstractAsyncContextManager[FirecrackerApi]]:
    """A server that answers every request with the same bytes, and keeps the connection."""

    @asynccontextmanager
    async def served(answer: bytes) -> AsyncIterator[FirecrackerApi]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            await asyncio.sleep(30)

        path = tmp_path / "hostile.sock"
        async with await asyncio.start_unix_server(handle, path) as server, FirecrackerApi(path) as api:
            serving = asyncio.create_task(server.serve_forever())
            yield api
            serving.cancel()

    return served


async def test_an_answer_that_never_comes_has_a_deadline(
    hostile: Callable[[bytes], AbstractAsyncContextManager[FirecrackerApi]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "CALL_SECONDS", 0.2)
    for answer in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"):
        async with hostile(answer) as api:
            with pytest.raises(MachineTimeout, match=r"did not answer GET /version within 0\.2 s"):
                await api.call("GET", "/version", timeout_seconds=0.2)


async def test_an_answer_without_end_is_not_read_to_it(
    hostile: Callable[[bytes], AbstractAsyncContextManager[FirecrackerApi]],
) -> None:
    async with hostile(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 200_000) as api:
        with pytest.raises(MachineError, match="more than 65536 bytes"):
            await api.version()


@pytest.mark.parametrize("text", [b"[1, 2]", b"nonsense", b"[" * 60000, b'{"firecracker_version": {"a": 1}}'])
async def test_an_improper_answer_is_not_used(
    hostile: Callable[[bytes], AbstractAsyncContextManager[FirecrackerApi]], text: bytes
) -> None:
    async with hostile(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)) as api:
        assert len(await api.version()) <= 64


async def test_a_socket_without_a_listener_is_an_error(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    async with FirecrackerApi(tmp_path / "dead.sock") as api:
        with pytest.raises(MachineDied):
            await api.version()
