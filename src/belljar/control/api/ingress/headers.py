"""Which headers pass between a caller and a program in a sandbox, by path.

By path, a sandbox shares the origin of the API. So nothing that authenticates the caller reaches the guest, and nothing
of a response weakens how browsers treat this origin.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Protocol
from urllib.parse import urlsplit

from starlette.types import Scope

Header = tuple[bytes, bytes]

#: They are about one connection (RFC 9110, 7.6.1).
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
#: The caller's key and session, which no guest may see, and what this server sets itself.
NOT_TO_GUEST = HOP_BY_HOP | {
    b"authorization",
    b"cookie",
    b"belljar-project",
    b"belljar-port-token",
    b"host",
    b"expect",
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-forwarded-prefix",
    b"x-real-ip",
}
#: What holds for the whole origin, which is the API's, or is set by this server for every response.
_NOT_TO_CALLER = HOP_BY_HOP | {
    b"set-cookie",
    b"set-cookie2",
    b"clear-site-data",
    b"strict-transport-security",
    b"public-key-pins",
    b"alt-svc",
    b"service-worker-allowed",
    b"content-security-policy",
    b"content-security-policy-report-only",
    b"x-frame-options",
    b"x-content-type-options",
    b"cross-origin-resource-policy",
    b"referrer-policy",
    b"www-authenticate",
    b"x-request-id",
    b"reporting-endpoints",
    b"report-to",
    b"nel",
    b"link",
    b"refresh",
    b"speculation-rules",
    b"secure-session-registration",
    b"sec-session-registration",
    b"use-as-dictionary",
    # Reverse proxies before this server obey them, and would send files of their own.
    b"x-sendfile",
    b"x-lighttpd-send-file",
    b"x-reproxy-url",
}
_PREFIXES_NOT_TO_CALLER = (b"access-control-", b"x-accel-")
_DOT = re.compile("%2e", re.IGNORECASE)


class PassedHeaders(Protocol):
    """Which headers pass between a caller and the program at one port."""

    def to_guest(self, scope: Scope) -> list[Header]:
        """Return the headers for the program in the sandbox."""
        ...

    def to_caller(self, headers: Iterable[Header], scope: Scope, target: bytes) -> Iterator[Header]:
        """Yield the headers of the response to a request for `target`, for the caller."""
        ...


class PathHeaders:
    """The headers of a port by its path, below `prefix`."""

    def __init__(self, port: int, prefix: str, public_url: str | None) -> None:
        """`public_url` is the address of this server for browsers, where a proxy changes `Host`."""
        self._port = port
        self._prefix = prefix
        self._public_host = None if public_url is None else urlsplit(public_url).hostname

    def to_guest(self, scope: Scope) -> list[Header]:
        headers = [(b"host", b"localhost:%d" % self._port)]
        headers += without(scope["headers"], NOT_TO_GUEST)
        return [*headers, *forwarded(scope), (b"x-forwarded-prefix", self._prefix.encode())]

    def to_caller(self, headers: Iterable[Header], scope: Scope, target: bytes) -> Iterator[Header]:
        own = {hostname_of(host_of(scope)), self._public_host} - {None}
        for name, value in without(headers, _NOT_TO_CALLER):
            if name.startswith(_PREFIXES_NOT_TO_CALLER):
                continue
            if name != b"location":
                yield name, value
            elif place := redirection(value.decode("latin-1"), own, target.decode("latin-1"), self._prefix):
                yield name, place.encode("latin-1")


def without(headers: Iterable[Header], names: Collection[bytes]) -> Iterator[Header]:
    """Yield the headers in lower case, without those of one connection and these."""
    given = [(name.lower(), value) for name, value in headers]
    named = _named_in_connection(given) | _length_if_chunked(given)
    return ((name, value) for name, value in given if name not in names and name not in named)


def forwarded(scope: Scope) -> Iterator[Header]:
    """Yield what the program may know of the caller and its connection."""
    if client := scope.get("client"):
        yield b"x-forwarded-for", str(client[0]).encode()
    yield b"x-forwarded-proto", b"https" if scope["scheme"] in ("https", "wss") else b"http"
    if host := host_of(scope):
        yield b"x-forwarded-host", host.encode("latin-1")


def host_of(scope: Scope) -> str:
    """Return the header `Host`; empty without one."""
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")


def hostname_of(authority: str) -> str | None:
    """Return the host name of an authority without its port; None for an invalid one."""
    try:
        return urlsplit(f"//{authority}").hostname
    except ValueError:
        return None


def redirection(location: str, own: Collection[str | None], target: str, prefix: str) -> str | None:
    """Return where a redirection of the guest may lead: into its own port, or to another host; None: nowhere.

    Clients follow one within this origin with the caller's key or session, and for 307 and 308 with the caller's
    method: the guest must not choose the route of the API. `own` are this server's host names, `target` is what the
    guest was asked.
    """
    # As browsers read it.
    place = re.sub(r"[\t\r\n]", "", location).strip("".join(map(chr, range(0x21)))).replace("\\", "/")
    if place.startswith("//"):
        place = f"http://{place.lstrip('/')}"
    try:
        parts = urlsplit(place)
        hostname = parts.hostname
    except ValueError:
        return None
    if re.match("[A-Za-z][A-Za-z0-9+.-]*:", place):
        if parts.scheme not in ("http", "https") or not hostname:
            return None
        if hostname not in own and hostname not in ("localhost", "127.0.0.1"):
            return place
        place = re.sub("^[^/?#]*", "", place.partition("://")[2])
        place = place if place.startswith("/") else f"/{place}"
    path, rest = re.fullmatch("([^?#]*)(.*)", place, re.DOTALL).groups()  # type: ignore[union-attr]
    requested = target.partition("?")[0]
    if not path:
        path = requested
    elif not path.startswith("/"):
        path = f"{requested.rpartition('/')[0]}/{path}"
    elif path == prefix or path.startswith(f"{prefix}/"):
        path = path[len(prefix) :] or "/"
    return f"{prefix}{_without_dots(path)}{rest}"


def _without_dots(path: str) -> str:
    """Return an absolute path without the parts `.` and `..`, which are also written `%2e`."""
    kept: list[str] = []
    for part in path.split("/")[1:]:
        plain = _DOT.sub(".", part)
        if plain == "..":
            del kept[-1:]
        elif plain != ".":
            kept.append(part)
    ends_open = _DOT.sub(".", path.rpartition("/")[2]) in (".", "..")
    return "/" + "/".join(kept) + ("/" if ends_open and kept else "")


def _length_if_chunked(headers: Iterable[Header]) -> set[bytes]:
    """Return the name of the length if it does not hold: chunks go before it (RFC 9112, 6.3)."""
    chunked = any(name.lower() == b"transfer-encoding" for name, _ in headers)
    return {b"content-length"} if chunked else set()


def _named_in_connection(headers: Iterable[Header]) -> set[bytes]:
    values = [value for name, value in headers if name.lower() == b"connection"]
    return {token.strip().lower() for value in values for token in value.split(b",")}
