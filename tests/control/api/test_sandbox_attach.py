"""WebSockets of the real server: attached to commands of a sandbox, and the limits of every WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from belljar.control.api import websocket as limits
from belljar.control.api.routes import sandbox_attach
from control.api.sandbox_calls import LiveSandbox

pytestmark = pytest.mark.process


async def messages(connection: ClientConnection) -> tuple[dict[int, bytes], list[dict[str, Any]]]:
    """Return the bytes of each stream and the JSON messages, until the server closes."""
    streams: dict[int, bytes] = {1: b"", 2: b""}
    reported: list[dict[str, Any]] = []
    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = await connection.recv()
                if isinstance(message, bytes):
                    streams[message[0]] += message[1:]
                else:
                    reported.append(json.loads(message))
    return streams, reported


async def test_input_output_and_exit_cross_one_connection(live: LiveSandbox) -> None:
    started = await live.box.exec("echo early; cat; echo err >&2; exit 6", background=True, keep_stdin_open=True)
    async with live.websocket(f"/processes/{started['pid']}/attach") as connection:
        await connection.send(b"\0some ")
        await connection.send(b"\0input\n")
        await connection.send(json.dumps({"type": "end_stdin"}))
        streams, reported = await messages(connection)
        assert connection.close_code == 1000
    assert streams == {1: b"early\nsome input\n", 2: b"err\n"}
    assert [each["type"] for each in reported] == ["started", "exit"]
    assert reported[1]["exit_code"] == 6


async def test_a_terminal_is_resized_and_interrupted(live: LiveSandbox) -> None:
    command = "trap 'stty size; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    started = await live.box.exec(command, background=True, pty={"columns": 80, "rows": 24})
    async with live.websocket(f"/processes/{started['pid']}/attach") as connection:
        seen = b""
        while b"ready" not in seen:
            message = await connection.recv()
            seen += message[1:] if isinstance(message, bytes) else b""
        await connection.send(json.dumps({"type": "resize", "columns": 133, "rows": 44}))
        await connection.send(b"\0\x03")
        streams, reported = await messages(connection)
    assert b"44 133" in streams[1] and reported[-1]["exit_code"] == 9


async def test_two_clients_see_the_same_and_one_that_leaves_ends_nothing(live: LiveSandbox) -> None:
    started = await live.box.exec("read x; echo $x; sleep 0.2; echo end", background=True, keep_stdin_open=True)
    path = f"/processes/{started['pid']}/attach"
    async with live.websocket(path) as first, live.websocket(path) as second:
        await first.send(b"\0word\n")
        while (message := await first.recv()) != b"\1word\n":
            assert isinstance(message, str)
        await first.close()
        streams, reported = await messages(second)
    assert streams[1] == b"word\nend\n" and reported[-1]["exit_code"] == 0


async def test_a_machine_that_dies_ends_the_connection_with_an_error(live: LiveSandbox) -> None:
    started = await live.box.exec("sleep 100", background=True)
    async with live.websocket(f"/processes/{started['pid']}/attach") as connection:
        await connection.recv()
        live.sandboxes.node.machines[live.box.id][1].kill()
        _, reported = await messages(connection)
        assert connection.close_code == 1011
    assert [each["type"] for each in reported] == ["error"] and reported[0]["code"] in (
        "stream_broken",
        "sandbox_ended",
    )


WRONG = (
    b"",
    b"\x01x",
    b"\0" + b"x" * 300_000,
    "no json",
    "[]",
    "1",
    '{"type": "other"}',
    '{"type": "resize", "columns": 0}',
)


async def test_a_wrong_message_ends_the_connection_and_not_the_command(live: LiveSandbox) -> None:
    started = await live.box.exec("sleep 100", background=True)
    url = f"/processes/{started['pid']}"
    for message in WRONG:
        async with live.websocket(f"{url}/attach") as connection:
            await connection.send(message)
            _, reported = await messages(connection)
            assert connection.close_code == 1008 and reported[-1]["code"] == "invalid_request", message[:80]
    assert (await live.box.http.get(f"{live.box.url}{url}")).json()["status"] == "running"


async def test_a_websocket_needs_a_key_and_an_origin_of_its_own(live: LiveSandbox) -> None:
    started = await live.box.exec("sleep 100", background=True)
    path = f"/processes/{started['pid']}/attach"
    _, secret = await live.sandboxes.served.services.keys.create("tenant", "none")
    async with await live.sandboxes.served.caller_of("other") as other:
        foreign = other.headers["authorization"]
    for headers, status in (
        ({}, 401),
        ({"Authorization": "Bearer bj_wrong"}, 401),
        ({"Authorization": f"Bearer {secret}"}, 403),
        ({"Authorization": foreign}, 404),
        ({"Origin": "https://evil.example"}, 403),
    ):
        with pytest.raises(InvalidStatus) as refused:
            async with live.websocket(path, headers=headers):
                pass
        response = refused.value.response
        assert response.status_code == status, headers
        assert json.loads(response.body or b"")["code"] and response.headers["content-type"].endswith("problem+json")
    for other_path in ("/processes/99999/attach", "/nothing"):
        with pytest.raises(InvalidStatus) as refused:
            async with live.websocket(other_path):
                pass
        assert refused.value.response.status_code in (403, 404)


async def test_a_revoked_key_ends_its_connections(live: LiveSandbox) -> None:
    key, secret = await live.sandboxes.served.services.keys.create("tenant", "soon revoked", role="owner")
    started = await live.box.exec("sleep 100", background=True)
    headers = {"Authorization": f"Bearer {secret}"}
    async with live.websocket(f"/processes/{started['pid']}/attach", headers=headers) as connection:
        await connection.recv()
        assert (await live.box.http.delete(f"/v1/keys/{key.id}")).status_code in (200, 204)
        _, reported = await messages(connection)
    assert reported[-1]["code"] == "not_authenticated"


async def test_a_client_that_reads_nothing_is_cut_off_and_the_command_goes_on(
    live: LiveSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WRITE_SECONDS", 0.5)
    started = await live.box.exec("head -c 50000000 /dev/zero; echo done", background=True)
    path = f"/processes/{started['pid']}"
    async with live.websocket(f"{path}/attach", max_queue=1) as connection:
        ended = (await live.box.http.get(live.box.url + path, params={"wait": 30})).json()
        assert ended["exit_code"] == 0  # its output is dropped, not waited for
        await asyncio.sleep(1)
        with contextlib.suppress(ConnectionClosed):
            while True:
                await connection.recv()
    assert not [each for each in live.server.server_state.connections if isinstance(each, limits.WebSocket)]


async def test_a_message_over_the_limit_closes_the_connection(live: LiveSandbox) -> None:
    started = await live.box.exec("sleep 100", background=True)
    async with live.websocket(f"/processes/{started['pid']}/attach") as connection:
        with contextlib.suppress(ConnectionClosed):
            await connection.send(b"\0" + b"x" * limits.MAX_MESSAGE_BYTES)
        await messages(connection)
        assert connection.close_code == 1009


async def test_an_upload_that_breaks_off_leaves_the_old_file(live: LiveSandbox) -> None:
    box = live.box
    (box.folder / "f").write_bytes(b"old")
    host, port = live.base.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"PUT {box.file('f')} HTTP/1.1\r\nHost: x\r\nAuthorization: {live.headers['Authorization']}\r\n"
    writer.write(f"{head}Content-Length: 1000\r\n\r\nnew".encode())
    await writer.drain()
    await asyncio.sleep(0.3)
    writer.close()
    for _ in range(200):
        if [path.name for path in box.folder.iterdir()] == ["f"]:
            break
        await asyncio.sleep(0.05)
    assert (box.folder / "f").read_bytes() == b"old"
    assert [path.name for path in box.folder.iterdir()] == ["f"]


async def test_input_that_the_command_never_reads_keeps_no_connection(
    live: LiveSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_attach, "INPUT_SECONDS", 0.3)
    started = await live.box.exec("sleep 100", background=True, keep_stdin_open=True)
    async with live.websocket(f"/processes/{started['pid']}/attach") as connection:
        sending = asyncio.create_task(_send_much(connection))
        _, reported = await messages(connection)
        sending.cancel()
        await asyncio.wait([sending])
    assert reported[-1]["code"] == "stream_broken" and "input" in reported[-1]["detail"]


async def _send_much(connection: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await connection.send(b"\0" + b"x" * 200_000)
