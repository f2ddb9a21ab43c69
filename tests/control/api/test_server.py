"""The server at its sockets: limits of connections and descriptors, deadlines, invalid HTTP, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import structlog

from belljar.control.api import auth_middleware as gate
from belljar.control.api import file_descriptors, server
from belljar.control.api.server import Connection, Server
from belljar.local_server import read_address, read_admin_key
from belljar.model.errors import HostError
from belljar.settings import Settings
from support.registered_images import register
from support.served import Served

pytestmark = pytest.mark.process

# --- a real process with few descriptors ----------------------------------------------------------------------------


@contextlib.contextmanager
def serving(data_dir: Path, *, descriptors: int) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """`belljar serve` without a worker, and a client of it."""
    command = ["prlimit", f"--nofile={descriptors}:{descriptors}", sys.executable, "-m", "belljar", "serve"]
    command += ["--no-worker", "--port", "0", "--data-dir", str(data_dir)]
    env = {**os.environ, "BELLJAR_LOG_FORMAT": "json"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        try:
            assert "belljar serves on" in process.stderr.readline()
            url, key = read_address(data_dir), read_admin_key(data_dir)
            assert url is not None
            with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
                yield process, client
        finally:
            process.kill()


def test_idle_connections_beyond_all_descriptors_end_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, descriptors=160) as (process, client), contextlib.ExitStack() as stack:
        host, port = client.base_url.host, client.base_url.port
        assert port is not None
        client.headers["Connection"] = "close"  # a kept connection may be the idle one that makes room for another
        for number in range(400):
            idle = stack.enter_context(socket.create_connection((host, port)))
            with contextlib.suppress(OSError):
                idle.send((b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"x" * 50)[number % 3])
            if number % 100 == 50:
                assert client.get("/v1/jobs").status_code == 200
        assert client.get("/v1/jobs").status_code == 200
        assert len(os.listdir(f"/proc/{process.pid}/fd")) < 160
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        log = process.stderr.read()
        assert process.wait(30) == 0
    assert "Traceback" not in log
    assert len(log) < 20_000


def test_the_soft_limit_of_descriptors_is_raised(tmp_path: Path) -> None:
    code = "from belljar.control.api.file_descriptors import raise_descriptor_limit as r; print(r())"
    for limits, expected in (("150:500", "500"), ("300:300", "300")):
        command = ["prlimit", f"--nofile={limits}", sys.executable, "-c", code]
        assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip() == expected
    command = ["prlimit", "--nofile=60:60", sys.executable, "-c", code]
    assert "ulimit -n" in subprocess.run(command, capture_output=True, text=True, timeout=60).stderr


def test_connections_leave_descriptors_to_the_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for soft, expected in ((256, 64), (1024, 256), (4096, 1536), (65536, 2048)):
        monkeypatch.setattr(file_descriptors.resource, "getrlimit", lambda _which, soft=soft: (soft, soft))
        assert file_descriptors.max_connections(Settings(data_dir=tmp_path)) == expected
    monkeypatch.setattr(file_descriptors.resource, "getrlimit", lambda _which: (64, 64))
    with pytest.raises(HostError):
        file_descriptors.raise_descriptor_limit()


# --- a server in this process ---------------------------------------------------------------------------------------


class Sockets:
    """A server that listens, and raw connections to it."""

    def __init__(self, running: Server, port: int) -> None:
        self.server = running
        self.port = port

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def send(self, data: bytes) -> bytes:
        """Everything that is answered to these bytes until the server closes the connection."""
        reader, writer = await self.open()
        with contextlib.closing(writer):
            writer.write(data)
            async with asyncio.timeout(30):
                try:
                    return await reader.read()
                except ConnectionResetError:
                    return b""


@contextlib.asynccontextmanager
async def listening(api: Served) -> AsyncIterator[Sockets]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        running = Server(api.services)
        task = asyncio.create_task(running.serve([listener]))
        while not running.started:
            await asyncio.sleep(0.01)
        try:
            yield Sockets(running, listener.getsockname()[1])
        finally:
            running.should_exit = True
            async with asyncio.timeout(30):
                await task


SLOW = {
    "nothing": b"",
    "half a head": b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
    "half a second head": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\n",
    "half a body that nobody wants": b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{",
}


@pytest.mark.parametrize("data", SLOW.values(), ids=SLOW.keys())
async def test_a_slow_client_is_closed(api: Served, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.2)
    async with listening(api) as sockets:
        await sockets.send(data)
        assert not sockets.server.server_state.connections


async def test_a_client_that_drips_a_head_is_closed(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    async with listening(api) as sockets:
        reader, writer = await sockets.open()
        writer.write(b"GET /healthz HTTP/1.1\r\n")
        # The connection ends by a reset when a line was on its way.
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(30):
                while not reader.at_eof():
                    writer.write(b"X: y\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.02)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.01):
                            if await reader.read(1) == b"":
                                break
        writer.close()


async def test_a_body_that_stops_is_refused(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("belljar.control.api.auth_middleware._STALL_SECONDS", 0.2)
    async with listening(api) as sockets:
        key = read_admin_key(api.services.settings.data_dir)
        head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        answer = await sockets.send(f"{head}Content-Length: 99\r\n\r\n{{".encode())
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "request_timeout"


async def test_a_follower_whose_body_does_not_come_ends(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_STALL_SECONDS", 0.2)
    job = await api.submit()
    key = read_admin_key(api.services.settings.data_dir)
    head = f"GET /v1/jobs/{job['id']}/logs?follow=true HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    async with listening(api) as sockets:
        answer = await sockets.send(f"{head}Content-Length: 9\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"nosniff" in answer and not answer.endswith(b"0\r\n\r\n")


async def test_a_client_that_reads_nothing_is_closed(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WRITE_SECONDS", 0.2)
    async with listening(api) as sockets:
        _, writer = await sockets.open()
        with contextlib.closing(writer):
            while not sockets.server.server_state.connections:
                await asyncio.sleep(0.01)
            (connection,) = sockets.server.server_state.connections
            assert isinstance(connection, Connection)
            connection.transport.write(bytes(50 << 20))
            async with asyncio.timeout(30):
                while sockets.server.server_state.connections:
                    await asyncio.sleep(0.01)


async def test_the_connection_that_is_idle_longest_makes_room(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "max_connections", lambda _settings: 3)
    async with listening(api) as sockets, contextlib.AsyncExitStack() as stack:
        idle = []
        for _ in range(5):
            reader, writer = await sockets.open()
            stack.callback(writer.close)
            idle.append(reader)
            await asyncio.sleep(0.05)
        async with asyncio.timeout(30):
            for reader in idle[:2]:
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
        assert not any(reader.at_eof() for reader in idle[2:])
        answer = await sockets.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_beyond_connections_that_are_answered_others_are_refused(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "max_connections", lambda _settings: 2)
    job = await api.submit()
    key = read_admin_key(api.services.settings.data_dir)
    async with listening(api) as sockets, contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            reader, writer = await sockets.open()
            stack.callback(writer.close)
            path = f"/v1/jobs/{job['id']}/logs?follow=true"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
            async with asyncio.timeout(30):
                assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        reader, writer = await sockets.open()
        stack.callback(writer.close)
        async with asyncio.timeout(30):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: " in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "server_busy"


async def test_connections_of_stalled_clients_are_evicted(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "max_connections", lambda _settings: 2)
    monkeypatch.setattr(server, "STALL_SECONDS", 0.0)
    async with listening(api) as sockets, contextlib.AsyncExitStack() as stack:
        mutes: list[socket.socket] = []
        for _ in range(2):  # nobody needs a key for that
            mute = stack.enter_context(socket.socket())
            mutes.append(mute)
            mute.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            mute.setblocking(False)
            await asyncio.get_running_loop().sock_connect(mute, ("127.0.0.1", sockets.port))
            while len(connections(sockets)) < len(mutes):
                await asyncio.sleep(0.01)
            for each in connections(sockets):
                each.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            sending = asyncio.create_task(
                asyncio.get_running_loop().sock_sendall(mute, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 30_000)
            )
            stack.callback(sending.cancel)
        async with asyncio.timeout(60):
            while sum(each.stalled_since is not None for each in connections(sockets)) < 2:
                await asyncio.sleep(0.01)
        answer = await sockets.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")


def connections(sockets: Sockets) -> list[Connection]:
    found = list(sockets.server.server_state.connections)
    assert all(isinstance(each, Connection) for each in found)
    return [each for each in found if isinstance(each, Connection)]


async def test_errors_of_accept_are_retried_and_logged_once(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = 20

    class Failing(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            nonlocal failures
            if failures:
                failures -= 1
                raise OSError(24, "Too many open files")
            return super().accept()

    monkeypatch.setattr(server, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(socket, "socket", Failing)
    with structlog.testing.capture_logs() as log:
        async with listening(api) as sockets:
            answer = await sockets.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert failures == 0
    assert [entry["event"] for entry in log if entry["log_level"] == "warning"] == ["connection_accept_failed"]


NO_HTTP = {
    "nonsense": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "a long head": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    "two lengths": b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a bad chunk": b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a wrong coding": b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("data", NO_HTTP.values(), ids=NO_HTTP.keys())
async def test_what_is_not_http_is_refused(api: Served, data: bytes) -> None:
    async with listening(api) as sockets:
        answer = await sockets.send(data)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501"))
        assert (await sockets.send(b"GET /healthz HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_bytes_that_are_not_http_in_the_middle_of_an_answer_break_nothing(
    api: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    job = await api.submit()
    key = read_admin_key(api.services.settings.data_dir)
    async with listening(api) as sockets:
        head = f"GET /v1/jobs/{job['id']}/logs?follow=true HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        await sockets.send(f"{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode())
        assert (await sockets.send(b"GET /healthz HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs erofs-utils")
def test_the_end_with_followers_is_quiet_and_their_answers_have_no_end(tmp_path: Path) -> None:
    register(tmp_path, "python")
    with serving(tmp_path, descriptors=1024) as (process, client), contextlib.ExitStack() as stack:
        job = client.post("/v1/jobs", json={"code": "print(1)", "language": "python"}).json()
        key = client.headers["Authorization"]
        followers = []
        for number in range(12):
            follower = socket.create_connection((client.base_url.host, client.base_url.port or 0))
            followers.append(stack.enter_context(follower))
            follower.settimeout(30)
            accept = "text/event-stream" if number % 2 else "text/plain"
            path = f"/v1/jobs/{job['id']}/logs?follow=true"
            follower.send(
                f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nAccept: {accept}\r\n\r\n".encode()
            )
            assert follower.recv(17) == b"HTTP/1.1 200 OK\r\n"
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        log = process.stderr.read()
        assert process.wait(30) == 0
        for follower in followers:
            answer = b""
            while piece := follower.recv(65536):
                answer += piece
            assert not answer.endswith(b"0\r\n\r\n")
    assert "Traceback" not in log
    assert "destroyed" not in log
    assert "ERROR" not in log
