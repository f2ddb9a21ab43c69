# Written by script/sdk from transport_async.py; change that instead.
"""Sends requests to one server: errors as exceptions, bounded answers, and repetitions of what may be repeated."""

from __future__ import annotations

import contextlib
import functools
import itertools
import ssl
import time
from collections.abc import Generator, Iterator
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


class Transport:
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
            self.http = httpx.Client(
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

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def json(self, method: str, path: str, *, is_repeatable: bool | None = None, **rest: Any) -> dict[str, Any]:
        """Send a request and return the JSON object of its answer; {} for one without content.

        `is_repeatable` says whether the server does the work of a repeated request only once; default: it is a GET.
        """
        if is_repeatable is None:
            is_repeatable = method == "GET"
        for attempt in itertools.count():
            try:
                with self.open(method, path, **rest) as response:
                    data = _read_bounded(response)
                    return {} if response.status_code == _NO_CONTENT else parse_object(response, data)
            except (ServerError, Unreachable) as error:
                delay = delay_seconds(error, attempt, is_repeatable=is_repeatable, max_retries=self.max_retries)
                if delay is None:
                    raise
            time.sleep(delay)
        raise AssertionError("unreachable: the attempts are counted")

    @contextlib.contextmanager
    def open(
        self, method: str, path: str, *, is_endless: bool = False, headers: Any = _NO_HEADERS, **rest: Any
    ) -> Iterator[httpx.Response]:
        """Send a request; the answer, which is a success, is read inside the block. `is_endless`: it may pause."""
        timeout = httpx.Timeout(None if is_endless else _READ_SECONDS, connect=_CONNECT_SECONDS)
        with reachable(self.url):
            with self.http.stream(method, path, timeout=timeout, headers=dict(headers), **rest) as response:
                if not response.is_success:
                    raise problem(response, _read_bounded(response))
                yield response

    def chunks(self, path: str, *, is_endless: bool = False, **rest: Any) -> Generator[bytes, None, None]:
        """Yield the bytes of an answer."""
        with self.open("GET", path, is_endless=is_endless, **rest) as response:
            yield from response.iter_raw()

    def json_lines(self, path: str, **rest: Any) -> Generator[dict[str, Any], None, None]:
        """Yield the JSON objects of an answer that has one on each line."""
        with self.open("GET", path, **rest) as response:
            for line in _lines(response):
                yield parse_object(response, line)

    def lines(self, path: str, *, method: str = "GET", **rest: Any) -> Generator[bytes, None, None]:
        """Yield the lines of an answer without their ends."""
        with self.open(method, path, **rest) as response:
            yield from _lines(response)


def _expect_name(name: str, request: httpx.Request) -> None:
    request.extensions["sni_hostname"] = name


def _read_bounded(response: httpx.Response) -> bytes:
    """Read a whole answer. Raises ServerError when it is larger than 64 MiB."""
    data = bytearray()
    for chunk in response.iter_raw():
        data += chunk
        if len(data) > MAX_JSON_BYTES:
            raise not_belljar(response)
    return bytes(data)


def _lines(response: httpx.Response) -> Generator[bytes, None, None]:
    """Yield the lines of an answer. Raises ServerError when one is larger than 64 MiB."""
    rest = bytearray()
    for chunk in response.iter_raw():
        rest += chunk
        if b"\n" in chunk:
            *lines, last = bytes(rest).split(b"\n")
            yield from lines
            rest = bytearray(last)
        if len(rest) > MAX_JSON_BYTES:
            raise not_belljar(response)
    if rest:
        yield bytes(rest)
