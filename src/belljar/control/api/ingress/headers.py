"""Which headers pass between a caller and a program in a sandbox.

By path, a sandbox shares the origin of the API. So nothing that authenticates the caller reaches the guest, and nothing
of a response weakens how browsers treat this origin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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
}


def to_guest(scope: Scope, port: int, prefix: str) -> list[Header]:
    """Return the headers for the program in the sandbox. `prefix` is the path that was cut off."""
    named = _named_in_connection(scope["headers"])
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


def to_caller(headers: Iterable[Header]) -> Iterator[Header]:
    """Yield the headers of a response for the caller."""
    given = [(name.lower(), value) for name, value in headers]
    named = _named_in_connection(given)
    for name, value in given:
        if name not in _NOT_TO_CALLER and name not in named and not name.startswith(b"access-control-"):
            yield name, value


def _named_in_connection(headers: Iterable[Header]) -> set[bytes]:
    values = [value for name, value in headers if name.lower() == b"connection"]
    return {token.strip().lower() for value in values for token in value.split(b",")}
