"""Host names of ports, and what passes by them between a caller and a program."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.datastructures import Headers

from belljar.control.api.ingress.headers import PathHeaders
from belljar.control.api.ingress.host_names import PortHost, SandboxDomain
from belljar.control.api.ingress.origin_headers import OriginHeaders
from belljar.control.api.ingress.visitors import Shown, is_own_request, visitor_of
from belljar.model.errors import InvalidOption
from belljar.settings import load_settings

ID = "sb_01HZX3V7N8K2M4P6Q8R0S2T4V6"
LOW = ID.lower()
DOMAIN = SandboxDomain("boxes.example", "https://belljar.example:8443")


@pytest.mark.parametrize(
    "host",
    [
        f"8000-{LOW}.boxes.example",
        f"8000-{LOW.replace('_', '-')}.boxes.example:8443",
        f"8000-{LOW.removeprefix('sb_')}.boxes.example:",
        f"8000-{ID}.Boxes.EXAMPLE",
    ],
)
def test_a_name_of_a_port_is_read_in_every_spelling(host: str) -> None:
    assert DOMAIN.has(host)
    assert DOMAIN.parse(host) == PortHost(ID, 8000)


@pytest.mark.parametrize(
    "name",
    [
        f"0-{LOW}",
        f"08000-{LOW}",
        f"65536-{LOW}",
        f"99999-{LOW}",
        f"-1-{LOW}",
        f"8000-{LOW}x",
        f"8000-{LOW[:-1]}",
        f"8000-{LOW[:-1]}u",  # not in the alphabet of ids
        f"8000-job_{LOW[3:]}",
        f"a.8000-{LOW}",
        f"8000-{LOW}.",
        f"８000-{LOW}",
        f"8000 -{LOW}",
        f"8000-{LOW}\n",
        f"user@8000-{LOW}",
        "www",
        "",
    ],
)
def test_any_other_name_below_the_domain_is_nobodys(name: str) -> None:
    host = f"{name}.boxes.example"
    assert DOMAIN.has(host) and DOMAIN.parse(host) is None


@pytest.mark.parametrize(
    "host", ["boxes.example", "belljar.example", f"8000-{LOW}.boxes.example.evil", f"8000-{LOW}-boxes.example", ""]
)
def test_other_hosts_are_not_below_the_domain(host: str) -> None:
    assert not DOMAIN.has(host) and DOMAIN.parse(host) is None
    assert not DOMAIN.has("[::1]:80")


def test_a_name_with_a_dot_behind_it_is_below_the_domain_and_nobodys() -> None:
    assert DOMAIN.has(f"8000-{LOW}.boxes.example.") and DOMAIN.parse(f"8000-{LOW}.boxes.example.") is None


def test_the_url_of_a_port_has_the_scheme_and_port_of_the_server() -> None:
    name = f"80-{LOW.replace('_', '-')}.boxes.example"
    assert DOMAIN.url(ID, 80, "http://127.0.0.1:8080/v1") == f"https://{name}:8443/"
    assert SandboxDomain("boxes.example", None).url(ID, 80, "http://x:1/v1/y?z") == f"http://{name}:1/"
    assert SandboxDomain("boxes.example", None).url(ID, 80, "http://x:99999/") == f"http://{name}/"
    assert DOMAIN.parse(DOMAIN.url(ID, 80, "").removeprefix("https://").removesuffix("/")) == PortHost(ID, 80)


def scope(*headers: tuple[str, str], **fields: Any) -> dict[str, Any]:
    given = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    standard = {"type": "http", "method": "GET", "scheme": "https", "query_string": b"", "client": ("192.0.2.1", 5)}
    return {**standard, "headers": given, **fields}


def test_a_program_gets_its_host_and_cookies_and_nothing_of_ours() -> None:
    sent = dict(
        OriginHeaders().to_guest(
            scope(
                ("Host", "8000-x.boxes.example"),
                ("Cookie", "a=1; __Host-belljar_port=t; belljar_session=s; =belljar_port=t; b=2"),
                ("Belljar-Port-Token", "bjp_t"),
                ("Authorization", "Basic own"),
                ("Origin", "https://8000-x.boxes.example"),
                ("X-Forwarded-For", "1.2.3.4"),
                ("Connection", "X-Hop"),
                ("X-Hop", "1"),
            )
        )
    )
    assert sent == {
        b"host": b"8000-x.boxes.example",
        b"cookie": b"a=1; b=2",
        b"authorization": b"Basic own",
        b"origin": b"https://8000-x.boxes.example",
        b"x-forwarded-for": b"192.0.2.1",
        b"x-forwarded-proto": b"https",
        b"x-forwarded-host": b"8000-x.boxes.example",
    }
    key = scope(("Host", "h"), ("Authorization", "Bearer bj_secret"))
    assert b"authorization" not in dict(OriginHeaders().to_guest(key))


def test_a_program_has_power_over_its_own_host_alone() -> None:
    given = [
        (b"Set-Cookie", b"a=1; Path=/; Domain=boxes.example; HttpOnly"),
        (b"Set-Cookie", b"__Host-belljar_port=x; Secure"),
        (b"Set-Cookie", b"=belljar_port=x"),
        (b"Set-Cookie", b"b=2;domain = .boxes.example ;Secure"),
        (b"Content-Security-Policy", b"default-src 'self'"),
        (b"Clear-Site-Data", b'"cookies"'),
        (b"Alt-Svc", b'h3=":443"'),
        (b"Strict-Transport-Security", b"max-age=1; includeSubDomains"),
        (b"X-Accel-Redirect", b"/etc/passwd"),
        (b"Location", b"/next"),
        (b"Connection", b"close"),
    ]
    assert list(OriginHeaders().to_caller(given, scope(), b"/")) == [
        (b"content-security-policy", b"default-src 'self'"),
        (b"location", b"/next"),
        (b"set-cookie", b"a=1; Path=/; HttpOnly"),
        (b"set-cookie", b"b=2;Secure"),
    ]


@pytest.mark.parametrize(
    ("fields", "own"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, True),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, False),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}, False),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}, False),
        ({"origin": "http://own.boxes.example"}, True),
        ({"origin": "http://other.boxes.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://["}, False),
        ({}, True),
    ],
)
def test_a_cookie_counts_for_own_pages_and_opened_ones(fields: dict[str, str], own: bool) -> None:
    headers = Headers({"host": "own.boxes.example", "cookie": "belljar_port=t", **fields})
    assert is_own_request(scope(), headers) is own
    visitor = visitor_of(scope(), headers, is_tls=False)
    assert (visitor.token, visitor.shown) == (("t", Shown.COOKIE) if own else (None, Shown.NOWHERE))


@pytest.mark.parametrize("fields", [{}, {"sec-fetch-site": "none"}, {"sec-fetch-site": "same-site"}])
def test_a_cookie_changes_nothing_and_opens_no_websocket_without_an_origin(fields: dict[str, str]) -> None:
    headers = Headers({"host": "own", **fields})
    assert not is_own_request(scope(method="POST"), headers)
    assert not is_own_request(scope(type="websocket"), headers)
    own = Headers({"host": "own", "origin": "https://own"})
    assert is_own_request(scope(method="POST"), own) and is_own_request(scope(type="websocket"), own)


def test_the_token_is_taken_out_of_the_query() -> None:
    both = Headers({"host": "own", "belljar-port-token": "in header", "cookie": "__Host-belljar_port=c"})
    url = visitor_of(scope(query_string=b"a=%20&belljar_token=in%2Durl&b&belljar_token=2"), both, is_tls=True)
    assert (url.token, url.shown, url.query) == ("in-url", Shown.URL, b"a=%20&b")
    header = visitor_of(scope(query_string=b"xbelljar_token=1"), both, is_tls=True)
    assert (header.token, header.shown, header.query) == ("in header", Shown.HEADER, b"xbelljar_token=1")
    cookie = Headers({"host": "own", "cookie": "__Host-belljar_port=c"})
    assert visitor_of(scope(), cookie, is_tls=True).token == "c"
    assert visitor_of(scope(), cookie, is_tls=False).token is None


def test_a_redirection_to_the_public_address_leads_below_the_port() -> None:
    passed = PathHeaders(80, "/v1/sandboxes/sb/ports/80", "https://belljar.example")
    behind = scope(("Host", "internal:8080"))
    for location, place in (
        (b"https://belljar.example/v1/keys", b"/v1/sandboxes/sb/ports/80/v1/keys"),
        (b"http://internal/v1/keys", b"/v1/sandboxes/sb/ports/80/v1/keys"),
        (b"https://other.example/v1/keys", b"https://other.example/v1/keys"),
    ):
        assert list(passed.to_caller([(b"Location", location)], behind, b"/")) == [(b"location", place)]


@pytest.mark.parametrize("domain", ["*.boxes.example", "boxes.example:80", "10.0.0.1", "a_b.example", ".x", "x." * 110])
def test_a_domain_that_is_none_is_refused(domain: str) -> None:
    with pytest.raises(InvalidOption, match="sandbox_domain"):
        load_settings(sandbox_domain=domain)


def test_the_address_of_the_api_is_not_below_the_domain() -> None:
    with pytest.raises(InvalidOption, match="below example"):
        load_settings(sandbox_domain="example", public_url="https://belljar.example")
    assert load_settings(sandbox_domain="Boxes.Example", public_url="https://belljar.example").sandbox_domain == (
        "boxes.example"
    )
