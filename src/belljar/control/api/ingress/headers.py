"""Which headers pass between a caller and a program in a sandbox.

By path, a sandbox shares the origin of the API. So nothing that authenticates the caller reaches the guest, and nothing
of a response weakens how browsers treat this origin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from starlette.types import Scope

Header = tuple[bytes, bytes]

#: They are about one connection (RFC 9110, 7.6.1).
_HOP_BY_HOP = frozenset(
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
_NOT_TO_GUEST = _HOP_BY_HOP | {
    b"authorization",
    b"cookie",
    b"belljar-project",
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
_NOT_TO_CALLER = _HOP_BY_HOP | {
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


def to_guest(scope: Scope, port: int, prefix: str) -> list[Header]:
    """Return the headers for the program in the sandbox. `prefix` is the path that was cut off."""
    named = _named_in_connection(scope["headers"]) | _length_if_chunked(scope["headers"])
    headers = [(b"host", b"localhost:%d" % port)]
    headers += [(name, value) for name, value in scope["headers"] if name not in _NOT_TO_GUEST and name not in named]
    client = scope.get("client")
    if client:
        headers.append((b"x-forwarded-for", str(client[0]).encode()))
    scheme = "https" if scope["scheme"] in ("https", "wss") else "http"
    headers.append((b"x-forwarded-proto", scheme.encode()))
    host = next((value for name, value in scope["headers"] if name == b"host"), None)
    if host is not None:
        headers.append((b"x-forwarded-host", host))
    headers.append((b"x-forwarded-prefix", prefix.encode()))
    return headers


def to_caller(headers: Iterable[Header], scope: Scope, target: bytes, prefix: str) -> Iterator[Header]:
    """Yield the headers of the response to a request for `target`, for the caller."""
    given = [(name.lower(), value) for name, value in headers]
    named = _named_in_connection(given) | _length_if_chunked(given)
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
    for name, value in given:
        if name in _NOT_TO_CALLER or name in named or name.startswith(_PREFIXES_NOT_TO_CALLER):
            continue
        if name != b"location":
            yield name, value
        elif place := redirection(value.decode("latin-1"), host, target.decode("latin-1"), prefix):
            yield name, place.encode("latin-1")


def redirection(location: str, host: str, target: str, prefix: str) -> str | None:
    """Return where a redirection of the guest may lead: into its own port, or to another host; None: nowhere.

    Clients follow one within this origin with the caller's key or session, and for 307 and 308 with the caller's
    method: the guest must not choose the route of the API. `host` is this server's, `target` what the guest was asked.
    """
    # As browsers read it.
    place = re.sub(r"[\t\r\n]", "", location).strip("".join(map(chr, range(0x21)))).replace("\\", "/")
    if place.startswith("//"):
        place = f"http://{place.lstrip('/')}"
    try:
        parts, own = urlsplit(place), urlsplit(f"//{host}").hostname
        hostname = parts.hostname
    except ValueError:
        return None
    if re.match("[A-Za-z][A-Za-z0-9+.-]*:", place):
        if parts.scheme not in ("http", "https") or not hostname:
            return None
        if hostname not in (own, "localhost", "127.0.0.1"):
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
