"""Which headers pass between a caller and a program that has a host name, and so an origin, of its own.

Its cookies, policies and redirections are its own. But all sandboxes are below one domain, which browsers take for one
site: nothing of a response reaches beyond the program's own host, and the token that let the caller in stays here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from starlette.types import Scope

from belljar.control.api.ingress.headers import HOP_BY_HOP, NOT_TO_GUEST, Header, forwarded, host_of, without
from belljar.control.projects.key_format import PREFIX

TOKEN_HEADER = "belljar-port-token"  # noqa: S105 (its name)
#: Cookies whose names begin so, behind `__Host-` or not, are this server's.
OWN_COOKIES = b"belljar_"

#: What holds for more than the program's host or this connection, or is an order to a reverse proxy.
_NOT_TO_CALLER = HOP_BY_HOP | {
    b"set-cookie",
    b"set-cookie2",
    b"clear-site-data",
    b"strict-transport-security",
    b"public-key-pins",
    b"alt-svc",
    b"x-request-id",
    b"x-sendfile",
    b"x-lighttpd-send-file",
    b"x-reproxy-url",
}
_PREFIX_NOT_TO_CALLER = b"x-accel-"


class OriginHeaders:
    """The headers of a port by its host name."""

    def to_guest(self, scope: Scope) -> list[Header]:
        # Its own name: programs compare it with `Origin`, and make links of it.
        headers = [(b"host", host_of(scope).encode("latin-1")), *without(scope["headers"], NOT_TO_GUEST)]
        for name, value in scope["headers"]:
            if name == b"cookie" and (cookies := _without_own(value)):
                headers.append((name, cookies))
            elif name == b"authorization" and PREFIX.encode() not in value:  # a key that was sent here by mistake
                headers.append((name, value))
        return [*headers, *forwarded(scope)]

    def to_caller(self, headers: Iterable[Header], scope: Scope, target: bytes) -> Iterator[Header]:
        given = [(name.lower(), value) for name, value in headers]
        for name, value in without(given, _NOT_TO_CALLER):
            if not name.startswith(_PREFIX_NOT_TO_CALLER):
                yield name, value
        for name, value in given:
            if name == b"set-cookie" and (cookie := _of_host(value)) is not None:
                yield name, cookie


def _without_own(cookies: bytes) -> bytes:
    """Return a header `Cookie` without this server's own."""
    return b"; ".join(each.strip() for each in cookies.split(b";") if each.strip() and not _is_own(each))


def _of_host(cookie: bytes) -> bytes | None:
    """Return a `Set-Cookie` for the program's host alone; None for one in the place of this server's own.

    With the attribute Domain, the cookie would be sent to other sandboxes, too.
    """
    pair, *attributes = cookie.split(b";")
    if _is_own(pair):
        return None
    kept = [each for each in attributes if each.partition(b"=")[0].strip().lower() != b"domain"]
    return b";".join([pair, *kept])


def _is_own(pair: bytes) -> bool:
    """Return whether a cookie is this server's. One without a name is sent as its value, which may look like a pair."""
    name, equals, value = pair.partition(b"=")
    name = name.strip() if equals and name.strip() else value or name
    return name.strip().lower().removeprefix(b"__host-").startswith(OWN_COOKIES)
