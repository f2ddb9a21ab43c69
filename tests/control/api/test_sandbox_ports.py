"""Ports of a sandbox by path, over the real server: HTTP, events and WebSockets to programs of this host."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.utils import accept_key

from belljar.control.api.ingress import http_proxy, websocket_proxy
from control.api.sandbox_calls import LiveSandbox
from support.served import problem

pytestmark = pytest.mark.process

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def program(handler: Handler) -> AsyncIterator[int]:
    """Run a program that listens on a port of the loopback device, which the agent's process shares."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def answering(response: bytes, seen: list[bytes] | None = None) -> Handler:
    """Return a handler that reads the head of a request and sends this."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if seen is not None:
            seen.append(head)
        writer.write(response)
        await writer.drain()

    return handle


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/html\r\n\r\nhello"


async def test_a_request_arrives_without_the_key_and_with_forwarded_headers(live: LiveSandbox) -> None:
    seen: list[bytes] = []
    async with program(answering(OK, seen)) as port:
        headers = {
            "Cookie": "session=1",
            "X-Own": "2",
            "X-Forwarded-For": "1.2.3.4",
            "Connection": "X-Hop",
            "X-Hop": "3",
        }
        url = f"{live.box.url}/ports/{port}/a%2Fb/c?q=1&r=%20"
        response = await live.box.http.get(url, headers=headers)
    assert (response.status_code, response.text) == (200, "hello")
    head = seen[0].decode().lower()
    assert head.startswith("get /a%2fb/c?q=1&r=%20 http/1.1\r\n")
    assert f"host: localhost:{port}\r\n" in head and "x-own: 2" in head
    for absent in ("authorization", "cookie", "bj_", "x-hop", "1.2.3.4"):
        assert absent not in head, head
    assert "x-forwarded-for: 127.0.0.1" in head and "x-forwarded-proto: http\r\n" in head
    assert f"x-forwarded-prefix: {live.box.url.lower()}/ports/{port}\r\n" in head


async def test_a_page_of_the_guest_has_no_power_over_this_origin(live: LiveSandbox) -> None:
    guest = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: session=stolen\r\nClear-Site-Data: *\r\n"
        b"Content-Security-Policy: default-src *\r\nAccess-Control-Allow-Origin: *\r\nX-Frame-Options: ALLOW\r\n"
        b"Service-Worker-Allowed: /\r\nStrict-Transport-Security: max-age=9\r\nX-Own: kept\r\n\r\n"
    )
    async with program(answering(guest)) as port:
        headers = (await live.box.http.get(f"{live.box.url}/ports/{port}/")).headers
    assert headers["x-own"] == "kept"
    assert (
        "sandbox" in headers["content-security-policy"] and "default-src 'none'" in headers["content-security-policy"]
    )
    assert headers.get_list("content-security-policy") == [headers["content-security-policy"]]
    assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"
    for absent in ("set-cookie", "clear-site-data", "access-control-allow-origin", "service-worker-allowed"):
        assert absent not in headers
    assert "strict-transport-security" not in headers


async def test_a_body_is_streamed_both_ways(live: LiveSandbox) -> None:
    piece = b"x" * 100_000

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert b"transfer-encoding: chunked" in head
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while size := int((await reader.readline()).strip() or b"0", 16):
            data = await reader.readexactly(size + 2)
            writer.write(b"%x\r\n%b" % (size, data))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield piece

    async with program(echo) as port:
        response = await live.box.http.post(f"{live.box.url}/ports/{port}/", content=pieces())
    assert len(response.content) == 100 * len(piece)
    assert response.content == piece * 100


async def test_events_arrive_one_by_one(live: LiveSandbox) -> None:
    go_on = asyncio.Event()

    async def events(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await writer.drain()
        await go_on.wait()
        writer.write(b"data: 2\n\n")
        await writer.drain()

    async with program(events) as port, live.box.http.stream("GET", f"{live.box.url}/ports/{port}/") as response:
        received = b""
        async for data in response.aiter_raw():
            received += data
            go_on.set()
    assert received == b"data: 1\n\ndata: 2\n\n"


NOT_HTTP = (
    b"",
    b"SSH-2.0-OpenSSH\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\r\n b\0c\r\n\r\n",
)


async def test_what_is_not_http_is_a_bad_gateway(live: LiveSandbox) -> None:
    for answer in NOT_HTTP:
        async with program(answering(answer)) as port:
            response = await live.box.http.get(f"{live.box.url}/ports/{port}/")
        assert response.status_code == 502, answer[:80]
        assert response.json()["code"] in ("stream_broken", "port_refused")


async def test_a_response_that_breaks_off_is_not_whole(live: LiveSandbox) -> None:
    async with program(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")) as port:
        with pytest.raises(Exception, match=r"(?i)peer closed|incomplete|disconnected"):
            await live.box.http.get(f"{live.box.url}/ports/{port}/")
    async with program(answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")) as port:
        with pytest.raises(Exception, match=r"(?i)peer closed|incomplete|disconnected"):
            await live.box.http.get(f"{live.box.url}/ports/{port}/")


async def test_a_port_without_a_program_is_refused(live: LiveSandbox) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        problem(await live.box.http.get(f"{live.box.url}/ports/{port}/"), 502, "port_refused")
        with pytest.raises(InvalidStatus) as refused:
            async with live.websocket(f"/ports/{port}/"):
                pass
        assert refused.value.response.status_code == 502
    for wrong in (0, 65536, "x", -1):
        problem(await live.box.http.get(f"{live.box.url}/ports/{wrong}/"), 422, "invalid_option")


async def test_a_websocket_is_passed_on_with_its_subprotocol_and_close(live: LiveSandbox) -> None:
    seen: list[str] = []

    async def echo(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen.extend([connection.request.path, str(connection.request.headers)])
        async for message in connection:
            if message == "close":
                await connection.close(4321, "as asked")
                return
            await connection.send(message)

    async with serve(echo, "127.0.0.1", 0, subprotocols=["chat"], compression=None) as server:  # type: ignore[list-item]
        port = server.sockets[0].getsockname()[1]
        subprotocols = ["other", "chat"]
        async with live.websocket(f"/ports/{port}/ws/x?y=1", subprotocols=subprotocols) as connection:
            assert connection.subprotocol == "chat"
            for message in ("text ü", b"bytes", b"x" * 1_000_000):
                await connection.send(message)
                assert await connection.recv() == message
            await connection.send(iter(["frag", "ment"]))
            assert await connection.recv() == "fragment"
            await connection.send("close")
            with pytest.raises(ConnectionClosed) as closed:
                await connection.recv()
        assert closed.value.rcvd is not None and (closed.value.rcvd.code, closed.value.rcvd.reason) == (
            4321,
            "as asked",
        )
    assert seen[0] == "/ws/x?y=1" and "bj_" not in seen[1]


async def test_a_program_that_speaks_no_websocket_is_refused(live: LiveSandbox) -> None:
    for answer in (OK, b"nonsense\r\n\r\n", b""):
        async with program(answering(answer)) as port:
            with pytest.raises(InvalidStatus) as refused:
                async with live.websocket(f"/ports/{port}/"):
                    pass
            assert refused.value.response.status_code == 502


async def test_a_client_that_leaves_ends_the_connection_in_the_sandbox(live: LiveSandbox) -> None:
    gone = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nbegun")
        await writer.drain()
        assert await reader.read() == b""
        gone.set()

    async with program(wait) as port:
        async with live.box.http.stream("GET", f"{live.box.url}/ports/{port}/") as response:
            assert await anext(response.aiter_raw()) == b"begun"
        await asyncio.wait_for(gone.wait(), 10)


async def test_a_redirection_of_the_guest_leads_to_no_route_of_the_api(live: LiveSandbox) -> None:
    locations: list[str] = []

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = "HTTP/1.1 307 Temporary Redirect\r\nContent-Length: 0\r\nConnection: close\r\n"
        writer.write(f"{head}Location: {locations[-1]}\r\n\r\n".encode())
        await writer.drain()

    async with program(redirect) as port:
        host, prefix = live.box.http.base_url.netloc.decode(), f"{live.box.url}/ports/{port}"
        for location, place in (
            ("/v1/projects/tenant", f"{prefix}/v1/projects/tenant"),
            ("../../../../projects/x", f"{prefix}/projects/x"),
            ("%2E%2e/..\\..\\%2e./keys", f"{prefix}/keys"),
            (f"{prefix}/../../../keys?a=1", f"{prefix}/keys?a=1"),
            (f"{prefix}/done", f"{prefix}/done"),
            ("next?page=2", f"{prefix}/a/next?page=2"),
            (f"http://{host}/v1/keys", f"{prefix}/v1/keys"),
            (f"///user@{host}/v1/keys#x", f"{prefix}/v1/keys#x"),
            ("https://docs.example/page", "https://docs.example/page"),
            ("http:/v1/keys", None),
            ("javascript:alert(1)", None),
        ):
            locations.append(location)
            response = await live.box.http.delete(f"{prefix}/a/b", follow_redirects=False)
            assert (response.status_code, response.headers.get("location")) == (307, place), location


async def test_a_reverse_proxy_gets_no_orders_from_the_guest(live: LiveSandbox) -> None:
    guest = (
        b"HTTP/1.1 200 OK\r\nX-Accel-Redirect: /internal/keys\r\nX-Sendfile: /etc/passwd\r\nSpeculation-Rules: x\r\n"
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    )
    async with program(answering(guest)) as port:
        response = await live.box.http.get(f"{live.box.url}/ports/{port}/")
    assert response.text == "hello"  # framed by its chunks, not by the length beside them
    for absent in ("x-accel-redirect", "x-sendfile", "speculation-rules"):
        assert absent not in response.headers


async def test_a_status_that_does_not_exist_is_a_bad_gateway(live: LiveSandbox) -> None:
    async with program(answering(b"HTTP/1.1 799 Nothing\r\nContent-Length: 0\r\n\r\n")) as port:
        problem(await live.box.http.get(f"{live.box.url}/ports/{port}/"), 502, "stream_broken")


async def test_a_program_that_reads_nothing_keeps_no_request(
    live: LiveSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_proxy, "WRITE_SECONDS", 0.3)
    closed = asyncio.Event()

    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nbegun")
        await writer.drain()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await closed.wait()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 100_000

    def connected() -> int:
        return len(live.server.server_state.tasks)

    async with program(begin) as port:
        before = connected()
        url = f"{live.box.url}/ports/{port}/"
        with contextlib.suppress(httpx.TransportError, TimeoutError):
            async with asyncio.timeout(2):
                await live.box.http.post(url, content=endless())
        async with asyncio.timeout(20):
            while connected() > before:
                await asyncio.sleep(0.05)
        closed.set()


async def test_the_first_messages_of_a_program_arrive_with_its_handshake(live: LiveSandbox) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(
            line.partition(":")[2].strip()
            for line in head.split("\r\n")
            if line.lower().startswith("sec-websocket-key")
        )
        answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(f"{answer}Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n".encode() + b"\x81\x05hello")
        await writer.drain()
        await reader.read()

    async with program(greet) as port, live.websocket(f"/ports/{port}/") as connection:
        assert await asyncio.wait_for(connection.recv(), 10) == "hello"


async def test_a_program_that_never_shakes_hands_is_refused(live: LiveSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_proxy, "HANDSHAKE_SECONDS", 0.2)
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()

    async with program(silent) as port:
        with pytest.raises(InvalidStatus) as refused:
            async with live.websocket(f"/ports/{port}/"):
                pass
        ended.set()
    assert refused.value.response.status_code == 502


async def test_a_revoked_key_ends_its_websocket_to_a_program(live: LiveSandbox) -> None:
    key, secret = await live.sandboxes.served.services.keys.create("tenant", "soon revoked", role="owner")

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(echo, "127.0.0.1", 0, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        headers = {"Authorization": f"Bearer {secret}"}
        async with live.websocket(f"/ports/{port}/", headers=headers) as connection:
            await connection.send("still valid")
            assert await connection.recv() == "still valid"
            assert (await live.box.http.delete(f"/v1/keys/{key.id}")).status_code in (200, 204)
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(connection.recv(), 10)
