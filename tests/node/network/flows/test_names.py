"""The names that machines claim, from the first bytes of a connection: hostile bytes give a name or nothing."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar.node.network.flows.names import ClaimedName, claimed_name


def client_hello(name: str | None) -> bytes:
    """Return what OpenSSL sends first."""
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    if name is None:
        context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def hello_with(server_name: bytes) -> bytes:
    """Return a real ClientHello with these bytes as its name."""
    template = b"n" * len(server_name)
    hello = client_hello(template.decode()) if server_name else client_hello("n")
    return hello.replace(template, server_name, 1)


def test_the_name_of_a_tls_handshake_is_found() -> None:
    assert claimed_name(client_hello("Files.Example.ORG")) == ClaimedName("tls", "files.example.org")
    assert claimed_name(client_hello(None)) is None


def test_a_handshake_that_is_cut_off_anywhere_gives_its_name_or_nothing() -> None:
    hello = client_hello("files.example.org")
    names = {claimed_name(hello[:length]) for length in range(len(hello))}
    assert names == {None, ClaimedName("tls", "files.example.org")}


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n", "example.org"),
        (b"POST /a?b HTTP/1.0\r\nAccept: */*\r\nhOsT:\texample.org:8080 \r\n\r\nx", "example.org"),
        (b"GET / HTTP/1.1\r\nHost: example.org", None),
        (b"GET / HTTP/1.1\r\nAccept: x\r\n\r\nHost: example.org\r\n", None),
        (b"GET / HTTP/2.0\r\nHost: example.org\r\n\r\n", None),
        (b"SSH-2.0-OpenSSH\r\nHost: example.org\r\n", None),
        (b"", None),
    ],
)
def test_the_host_of_a_request_is_found_in_its_head_alone(head: bytes, name: str | None) -> None:
    assert claimed_name(head) == (ClaimedName("http", name) if name else None)


@pytest.mark.parametrize(
    "name",
    [
        b"\x1b[31mred.org",
        b"a\0.org",
        b"<script>.org",
        b"..",
        b"-a.org",
        b"a b.org",
        b"\xff\xfe.org",
        "пример.org".encode(),
        b"a" * 64 + b".org",
        (b"a" * 60 + b".") * 5 + b"org",
        b"",
    ],
)
def test_a_hostile_name_is_no_name(name: bytes) -> None:
    assert claimed_name(b"GET / HTTP/1.1\r\nHost: " + name + b"\r\n\r\n") is None
    if 0 < len(name) < 64:
        assert claimed_name(hello_with(name)) is None


@given(st.binary(max_size=300), st.integers(0, 300), st.booleans())
def test_no_bytes_raise_an_error(noise: bytes, at: int, as_hello: bool) -> None:
    start = b"\x16\x03\x01\x02\x00\x01" if as_hello else b"GET / HTTP/1.1\r\nHost: a.org\r\n"
    payload = start[:at] + noise + start[at:]
    found = claimed_name(payload)
    assert found is None or (found.name.isascii() and found.name.isprintable() and len(found.name) <= 253)
