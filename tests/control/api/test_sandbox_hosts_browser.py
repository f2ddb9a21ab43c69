"""A page of a program in a sandbox, in Chromium: it works at its own host name, and reaches no other sandbox."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from control.api.sandbox_calls import PORTS_DOMAIN, LiveSandbox
from control.api.test_sandbox_ports import Handler, program
from support.chromium import chromium

pytestmark = pytest.mark.browser

PAGE = b"""<!doctype html><title>guest</title><script>
onload = async () => {
    const got = await (await fetch("/data", {method: "POST", body: "b"})).text();
    document.title = got + " " + document.cookie;
};
</script>"""


def site(seen: list[str]) -> Handler:
    """A program with a page, and with data for it; it notes what it is asked for."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        seen.append(head)
        body = PAGE if path == "/" else b"data"
        kind = "text/html" if path == "/" else "text/plain"
        headers = f"Content-Type: {kind}\r\nSet-Cookie: own=1\r\nContent-Length: {len(body)}"
        writer.write(f"HTTP/1.1 200 OK\r\n{headers}\r\n\r\n".encode() + body)
        await writer.drain()

    return handle


async def test_a_page_works_at_its_own_host_and_reaches_no_other_sandbox(live: LiveSandbox) -> None:
    private: list[str] = []
    hostile: list[str] = []
    async with program(site(private)) as port, program(site(hostile)) as hostile_port, chromium() as browser:
        made = (await live.box.http.post(f"{live.box.url}/ports/{port}/tokens")).json()
        await live.box.http.patch(live.box.url, json={"public_ports": [hostile_port]})
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(made["url"])
        await page.wait_for_function("document.title.startsWith('data')")
        assert await page.title() == "data own=1"  # the token's cookie is out of reach of scripts
        assert "belljar_token" not in page.url and not any(made["token"] in each for each in private)
        private.clear()

        other = await context.new_page()
        await other.goto(page.url.replace(f"//{port}-", f"//{hostile_port}-"))
        await other.wait_for_function("document.title.startsWith('data')")
        ways = {
            "fetch": "fetch(URL, {mode: 'no-cors', credentials: 'include'}).catch(() => 1)",
            "post": "fetch(URL, {method: 'POST', mode: 'no-cors', credentials: 'include', body: 'x'}).catch(() => 1)",
            "frame": "new Promise(done => { const frame = document.createElement('iframe'); frame.src = URL; "
            "frame.onload = () => done(1); document.body.append(frame); })",
            "websocket": "new Promise(done => { const socket = new WebSocket(URL.replace('http', 'ws')); "
            "socket.onopen = () => done('open'); socket.onerror = () => done('refused'); })",
        }
        reached: dict[str, Any] = {}
        for name, script in ways.items():
            reached[name] = await other.evaluate(script.replace("URL", json.dumps(page.url)))
        assert reached["websocket"] == "refused"
        assert private == [], f"{list(reached)} came to the other program"
        await other.evaluate(f"document.cookie = 'belljar_port=evil; domain={PORTS_DOMAIN}'")
        await page.reload()
        await page.wait_for_function("document.title.startsWith('data')")
        await context.close()
