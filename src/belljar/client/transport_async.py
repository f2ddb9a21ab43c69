"""Sends requests to one server: errors as exceptions, bounded answers, and repetitions of what may be repeated."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import httpx

from belljar.client.errors import Refused, ServerError, Unreachable
from belljar.client.responses import MAX_JSON_BYTES, not_belljar, parse_object, problem, reachable, trusting
from belljar.client.retry import delay_seconds
from belljar.client.websocket_target import WebSocketTarget

_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_NO_CONTENT = 204
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_WEBSOCKET_HEADERS = ("Authorization", "Belljar-Project")
_NO_HEADERS: MappingProxyType[str, str] = MappingProxyType({})


class AsyncTransport:
    """The HTTP connections to one server. Every method raises ServerError or Unreachable."""

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        project: str | None = None,
        ca_file: Path | str | None = None,
        server_name: str | None = None,
        max_retries: int = 0,
    ) -> None:
        if key is not None and not (key.isascii() and key.isprintable()):
            raise Refused(401, "not_authenticated", "the key contains invalid characters; copy it again")
        # No compression: a small answer must not become a large one here.
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        headers |= {"Belljar-Project": quote(project)} if project else {}
        timeout = httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS)
        self.url = url.rstrip("/")
        self.max_retries = max_retries
        with reachable(self.url):
            # Requests to this machine use no proxy, which would see the key.
            is_local = httpx.URL(self.url).host in _LOOPBACK
            verify = trusting(ca_file) if ca_file is not None else True
            self._uses_proxies = not is_local
            self._trust = verify if isinstance(verify, ssl.SSLContext) else None
            self.http = httpx.AsyncClient(
                base_url=self.url, headers=headers, timeout=timeout, trust_env=not is_local, verify=verify
            )
        self._server_name = server_name
        if server_name is not None:
            self.http.event_hooks = {"request": [functools.partial(_expect_name, server_name)]}

    def websocket(self, path: str) -> WebSocketTarget:
        """Return what a WebSocket at this path needs."""
        headers = {name: self.http.headers[name] for name in _WEBSOCKET_HEADERS if name in self.http.headers}
        is_tls = self.url.startswith("https:")
        return WebSocketTarget(
            url=f"ws{self.url.removeprefix('http')}{path}",
            headers=headers,
            ssl=self._trust if is_tls else None,
            server_name=self._server_name if is_tls else None,
            uses_proxies=self._uses_proxies,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self.http.aclose()

    async def json(self, method: str, path: str, *, is_repeatable: bool | None = None, **rest: Any) -> dict[str, Any]:
        """Send a request and return the JSON object of its answer; {} for one without content.

        `is_repeatable` says whether the server does the work of a repeated request only once; default: it is a GET.
        """
        if is_repeatable is None:
            is_repeatable = method == "GET"
        for attempt in itertools.count():
            try:
                async with self.open(method, path, **rest) as response:
                    data = await _read_bounded(response)
                    return {} if response.status_code == _NO_CONTENT else parse_object(response, data)
            except (ServerError, Unreachable) as error:
                delay = delay_seconds(error, attempt, is_repeatable=is_repeatable, max_retries=self.max_retries)
                if delay is None:
                    raise
            await asyncio.sleep(delay)
        raise AssertionError("unreachable: the attempts are counted")

    @contextlib.asynccontextmanager
    async def open(
        self, method: str, path: str, *, is_endless: bool = False, headers: Any = _NO_HEADERS, **rest: Any
    ) -> AsyncIterator[httpx.Response]:
        """Send a request; the answer, which is a success, is read inside the block. `is_endless`: it may pause."""
        timeout = httpx.Timeout(None if is_endless else _READ_SECONDS, connect=_CONNECT_SECONDS)
        with reachable(self.url):
            async with self.http.stream(method, path, timeout=timeout, headers=dict(headers), **rest) as response:
                if not response.is_success:
                    raise problem(response, await _read_bounded(response))
                yield response

    async def chunks(self, path: str, *, is_endless: bool = False, **rest: Any) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of an answer."""
        async with self.open("GET", path, is_endless=is_endless, **rest) as response:
            async for chunk in response.aiter_raw():
                yield chunk

    async def json_lines(self, path: str, **rest: Any) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the JSON objects of an answer that has one on each line."""
        async with self.open("GET", path, **rest) as response:
            async for line in _lines(response):
                yield parse_object(response, line)

    async def lines(self, path: str, *, method: str = "GET", **rest: Any) -> AsyncGenerator[bytes, None]:
        """Yield the lines of an answer without their ends."""
        async with self.open(method, path, **rest) as response:
            async for line in _lines(response):
                yield line


async def _expect_name(name: str, request: httpx.Request) -> None:
    request.extensions["sni_hostname"] = name


async def _read_bounded(response: httpx.Response) -> bytes:
    """Read a whole answer. Raises ServerError when it is larger than 64 MiB."""
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > MAX_JSON_BYTES:
            raise not_belljar(response)
    return bytes(data)


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Yield the lines of an answer. Raises ServerError when one is larger than 64 MiB."""
    rest = bytearray()
    async for chunk in response.aiter_raw():
        rest += chunk
        if b"\n" in chunk:
            *lines, last = bytes(rest).split(b"\n")
            for line in lines:
                yield line
            rest = bytearray(last)
        if len(rest) > MAX_JSON_BYTES:
            raise not_belljar(response)
    if rest:
        yield bytes(rest)
