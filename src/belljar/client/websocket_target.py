"""Where a WebSocket of the server is, what the connection needs, and its errors as those of the SDK."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlencode

import httpx

from belljar.client.errors import ServerError, Unreachable
from belljar.client.responses import problem

MAX_MESSAGE_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class WebSocketTarget:
    """A WebSocket of the server. `options` are for `websockets`' connect, synchronous or not."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    ssl: ssl.SSLContext | None
    server_name: str | None
    #: Whether proxies of the environment are used: not for this machine.
    uses_proxies: bool

    def with_query(self, **parameters: str) -> WebSocketTarget:
        """Return the target with these parameters."""
        return WebSocketTarget(**{**self.__dict__, "url": f"{self.url}?{urlencode(parameters)}"})

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments for connect, besides the URL."""
        proxy: Literal[True] | None = True if self.uses_proxies else None
        options: dict[str, Any] = {
            "additional_headers": dict(self.headers),
            "compression": None,
            "max_size": MAX_MESSAGE_BYTES,
            "proxy": proxy,
        }
        if self.ssl is not None:
            options["ssl"] = self.ssl
        if self.server_name is not None:
            options["server_hostname"] = self.server_name
        return options


@contextlib.contextmanager
def websocket_errors(url: str) -> Iterator[None]:
    """Raise the errors of a connection to this URL as ServerError or Unreachable."""
    from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

    try:
        yield
    except InvalidStatus as error:
        answer = error.response
        response = httpx.Response(answer.status_code, request=httpx.Request("GET", url.replace("ws", "http", 1)))
        raise problem(response, bytes(answer.body or b"")) from None
    except ConnectionClosed as error:
        raise Unreachable(f"the connection to {url} was lost ({error}); try again", is_temporary=True) from None
    except WebSocketException as error:
        raise Unreachable(f"{url} takes no WebSocket: {error}") from None
    except (OSError, TimeoutError) as error:
        raise Unreachable(f"no server answers at {url} ({error})", is_temporary=True) from None


def message_of(text: str | bytes) -> dict[str, Any]:
    """Return a JSON message of the server. Raises ServerError for one that says `error`, and for another text."""
    try:
        message = json.loads(text)
        kind = message["type"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ServerError(200, "not_belljar", "the server sent a message that is malformed") from None
    if kind == "error":
        raise ServerError(502, str(message.get("code")), str(message.get("detail")), details=message)
    return dict(message)
