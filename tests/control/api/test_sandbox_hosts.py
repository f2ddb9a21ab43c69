"""Ports of a sandbox by host name, over the real server: tokens, public ports, and what a visitor may not do."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from belljar.control.store.port_tokens import MAX_TOKENS
from control.api.sandbox_calls import PORTS_DOMAIN, LiveSandbox, OneSandbox, SandboxApi
from control.api.test_sandbox_ports import OK, answering, program
from support.served import problem

pytestmark = pytest.mark.process


async def token_for(live: LiveSandbox, port: int, **options: Any) -> dict[str, Any]:
    response = await live.box.http.post(f"{live.box.url}/ports/{port}/tokens", json=options)
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


def nothing(response: httpx.Response) -> dict[str, Any]:
    """The answer that tells nothing, without the request's id."""
    body = problem(response, 404, "not_found")
    return {name: value for name, value in body.items() if name != "request_id"}


async def test_a_port_is_private_and_nothing_tells_whether_its_sandbox_exists(live: LiveSandbox) -> None:
    async with program(answering(OK)) as port:
        last = "1" if live.box.id.endswith("0") else "0"
        unknown = f"{port}-{live.box.id[:-1].lower()}{last}.{PORTS_DOMAIN}"
        answers = [
            nothing(await live.visit(port)),
            nothing(await live.visit(port, headers=live.headers)),  # no key counts here
            nothing(await live.visit(port, headers={"Belljar-Port-Token": "bjp_wrong"})),
            nothing(await live.visit(port, "/?belljar_token=bjp_wrong")),
            nothing(await live.visit(port, headers={"Host": f"{port}-sb_{'0' * 26}.boxes.localhost"})),
            nothing(await live.visit(port, headers={"Host": unknown})),
            nothing(await live.visit(port, "/v1/jobs", headers={**live.headers, "Host": "www.boxes.localhost"})),
        ]
        assert all(each == answers[0] for each in answers)
        page = await live.visit(port, headers={"Accept": "text/html"})
        assert page.status_code == 404 and page.headers["content-type"].startswith("text/plain")
        assert "sandbox" in page.headers["content-security-policy"] and page.headers["x-request-id"]


async def test_a_token_lets_a_program_in_to_its_own_port(live: LiveSandbox) -> None:
    seen: list[bytes] = []
    async with program(answering(OK, seen)) as port:
        made = await token_for(live, port)
        header = {"Belljar-Port-Token": made["token"]}
        response = await live.visit(port, "/a%2Fb?q=1", method="POST", headers=header, content=b"body")
        assert (response.status_code, response.text) == (200, "hello")
        head = seen[0].decode().lower()
        assert head.startswith("post /a%2fb?q=1 http/1.1\r\n") and f"host: {live.host(port)}\r\n" in head
        assert made["token"].lower() not in head and "x-forwarded-prefix" not in head
        nothing(await live.visit(port + 1 if port < 65535 else port - 1, headers=header))
        other = await live.sandboxes.create()
        nothing(await live.visit(port, headers={**header, "Host": live.host(port, other)}))
        listed = (await live.box.http.get(f"{live.box.url}/ports/{port}/tokens")).json()["tokens"]
        assert [each["id"] for each in listed] == [made["id"]] and made["token"] not in json.dumps(listed)


async def test_a_browser_opens_the_url_once_and_keeps_a_cookie(live: LiveSandbox) -> None:
    seen: list[bytes] = []
    guest = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/html\r\nSet-Cookie: own=1; "
        b"Domain=boxes.localhost\r\n"
        b"Content-Security-Policy: default-src 'self'\r\n\r\nhello"
    )
    async with program(answering(guest, seen)) as port:
        made = await token_for(live, port, lifetime_seconds=600)
        url = httpx.URL(made["url"])
        assert url.host == live.host(port).replace("_", "-") and url.port == httpx.URL(live.base).port
        opened = await live.visit(port, f"//evil.example/a\\b?x=1&{url.query.decode()}&y")
        assert opened.status_code == 303 and opened.headers["location"] == "/.//evil.example/a%5Cb?x=1&y"
        assert opened.headers["referrer-policy"] == "no-referrer"
        cookie = opened.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Path=/" in cookie and "Domain" not in cookie
        assert 500 < int(cookie.partition("Max-Age=")[2].partition(";")[0]) <= 600
        pair = cookie.partition(";")[0]
        page = await live.visit(port, headers={"Cookie": f"{pair}; own=1", "Sec-Fetch-Site": "none"})
        assert (page.text, page.headers["set-cookie"]) == ("hello", "own=1")
        assert page.headers.get_list("content-security-policy") == ["default-src 'self'"]
        assert "x-frame-options" not in page.headers
        assert b"cookie: own=1\r\n" in seen[0].lower() and made["token"].encode() not in seen[0]
        for site in ("same-site", "cross-site"):  # the page of another sandbox
            headers = {"Cookie": pair, "Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
            nothing(await live.visit(port, headers=headers))
        nothing(await live.visit(port, method="POST", headers={"Cookie": pair}))
        assert len(seen) == 1


async def test_a_public_port_is_open_until_it_is_public_no_more(live: LiveSandbox) -> None:
    async with program(answering(OK)) as port:
        changed = await live.box.http.patch(live.box.url, json={"public_ports": [port, port]})
        assert changed.json()["public_ports"] == [port]
        assert (await live.visit(port, headers={"Belljar-Port-Token": "bjp_wrong"})).text == "hello"
        problem(await live.visit(1, headers={"Host": live.host(1)}), 404, "not_found")
        assert (await live.box.http.patch(live.box.url, json={"public_ports": []})).json()["public_ports"] == []
        nothing(await live.visit(port))
        box = await live.sandboxes.create(public_ports=[port])
        assert (await live.visit(port, headers={"Host": live.host(port, box)})).text == "hello"
        admin = live.sandboxes.served.http
        assert (await admin.patch("/v1/projects/tenant", json={"suspended": True})).status_code == 200
        nothing(await live.visit(port, headers={"Host": live.host(port, box)}))
    for wrong in ([0], [65536], ["x"], list(range(1, 66)), None):
        problem(
            await live.sandboxes.served.http.patch(live.box.url, json={"public_ports": wrong}), 422, "invalid_option"
        )


async def test_an_error_of_the_program_is_reported_to_whom_may_visit(live: LiveSandbox) -> None:
    async with program(answering(b"nonsense")) as port:
        header = {"Belljar-Port-Token": (await token_for(live, port))["token"]}
        problem(await live.visit(port, headers=header), 502, "stream_broken")
    problem(await live.visit(port, headers=header), 502, "port_refused")
    page = await live.visit(port, headers={**header, "Accept": "text/html"})
    assert page.text.startswith("502 port_refused: ") and page.headers["content-type"].startswith("text/plain")


async def test_a_preflight_is_the_programs_and_head_has_no_body(live: LiveSandbox) -> None:
    seen: list[bytes] = []
    allowed = b"HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: *\r\n\r\n"
    async with program(answering(allowed, seen)) as port:
        header = {"Belljar-Port-Token": (await token_for(live, port))["token"]}
        preflight = {**header, "Origin": "https://a.example", "Access-Control-Request-Method": "PUT"}
        response = await live.visit(port, method="OPTIONS", headers=preflight)
        assert response.headers["access-control-allow-origin"] == "*" and seen[0].startswith(b"OPTIONS / ")
    async with program(answering(OK)) as port:
        header = {"Belljar-Port-Token": (await token_for(live, port))["token"]}
        head = await live.visit(port, method="HEAD", headers=header)
        assert (head.status_code, head.headers["content-length"], head.content) == (200, "5", b"")


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def test_a_websocket_needs_a_token_or_a_cookie_of_its_own_page(live: LiveSandbox) -> None:
    async with serve(echo, "127.0.0.1", 0, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        secret = (await token_for(live, port))["token"]
        cookie = {"Cookie": f"belljar_port={secret}"}
        # The client sends its port in Host.
        own = f"http://{live.host(port)}:{httpx.URL(live.base).port}"
        for headers in ({"Belljar-Port-Token": secret}, {**cookie, "Origin": own}):
            async with live.visit_websocket(port, "/ws", **headers) as connection:
                await connection.send("hello")
                assert await connection.recv() == "hello"
        async with live.visit_websocket(port, f"/ws?belljar_token={secret}"):
            pass
        for headers in ({}, cookie, {**cookie, "Origin": "http://3000-other.boxes.localhost"}):
            with pytest.raises(InvalidStatus) as refused:
                async with live.visit_websocket(port, "/ws", **headers):
                    pass
            assert refused.value.response.status_code == 404


async def test_a_revoked_token_ends_what_it_opened(live: LiveSandbox) -> None:
    async def events(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while True:
            writer.write(b"data: 1\n\n")
            await writer.drain()
            await asyncio.sleep(0.1)

    async with program(events) as port, serve(echo, "127.0.0.1", 0, compression=None) as server:
        made = await token_for(live, port)
        socket_port = server.sockets[0].getsockname()[1]
        for_socket = await token_for(live, socket_port)
        async with live.visit_websocket(socket_port, **{"Belljar-Port-Token": for_socket["token"]}) as connection:
            async with asyncio.timeout(30):
                with pytest.raises(httpx.RemoteProtocolError):
                    async with (
                        httpx.AsyncClient(base_url=live.base, timeout=60) as http,
                        http.stream(
                            "GET", "/", headers={"Host": live.host(port), "Belljar-Port-Token": made["token"]}
                        ) as response,
                    ):
                        assert response.status_code == 200
                        for token, of_port in ((made, port), (for_socket, socket_port)):
                            url = f"{live.box.url}/ports/{of_port}/tokens/{token['id']}"
                            assert (await live.box.http.delete(url)).status_code == 204
                            problem(await live.box.http.delete(url), 404, "not_found")
                        async for _ in response.aiter_raw():
                            pass
                with pytest.raises(ConnectionClosed):
                    await connection.recv()
        nothing(await live.visit(port, headers={"Belljar-Port-Token": made["token"]}))


async def test_tokens_end_with_their_time_and_with_their_sandbox(sandboxes: SandboxApi, box: OneSandbox) -> None:
    tokens = f"{box.url}/ports/80/tokens"
    assert (await box.http.post(tokens, json={"lifetime_seconds": 0.001})).status_code == 201
    assert (await box.http.post(tokens)).json()["expires_at"] is None
    await asyncio.sleep(0.01)
    assert len((await box.http.get(tokens)).json()["tokens"]) == 1
    other = await sandboxes.served.caller_of("other")
    for method, url in (("GET", tokens), ("POST", tokens), ("DELETE", f"{tokens}/pt_x")):
        problem(await other.request(method, url), 404, "not_found")
    for _ in range(MAX_TOKENS - 1):
        assert (await box.http.post(tokens)).status_code == 201
    problem(await box.http.post(tokens), 409, "conflict")
    problem(await box.http.post(tokens, json={"lifetime_seconds": -1}), 422, "invalid_option")
    problem(await box.http.post(f"{box.url}/ports/0/tokens"), 422, "invalid_option")
    assert (await box.http.delete(box.url)).json()["status"] == "ended"
    assert (await box.http.get(tokens)).json() == {"tokens": []}
    problem(await box.http.post(tokens), 409, "sandbox_ended")
    problem(await box.http.patch(box.url, json={"public_ports": [1]}), 409, "sandbox_ended")
    recorded = (await sandboxes.served.http.get("/v1/audit?action=sandbox.create_port_token")).text
    assert '"port":80' in recorded and "bjp_" not in recorded
