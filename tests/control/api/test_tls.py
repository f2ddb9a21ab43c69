"""TLS: certificates of the local authority and of files, their renewal, and hostile clients of the port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import warnings
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from belljar.control.api import authority as authority_module
from belljar.control.api import server, tls_accept
from belljar.control.api.authority import LocalAuthority, host_names
from belljar.control.api.server import Server
from belljar.control.api.tls import ServerTls, read_certificate, tls_of
from belljar.model.errors import HostError, InvalidOption
from belljar.settings import Settings
from support.served import Served

NAMES = ["localhost", "127.0.0.1"]


def made(folder: Path, *names: str) -> LocalAuthority:
    authority = LocalAuthority(folder)
    assert authority.ensure([*NAMES, *names])
    return authority


def tls_from(authority: LocalAuthority) -> ServerTls:
    return ServerTls(authority.server_file, authority.server_file, authority.certificate_file)


def trusting(authority: LocalAuthority) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.certificate_file)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


@contextlib.asynccontextmanager
async def listening(api: Served, tls: ServerTls) -> AsyncIterator[tuple[Server, int]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        running = Server(api.services, tls=tls)
        task = asyncio.create_task(running.serve([listener]))
        while not running.started:
            await asyncio.sleep(0.01)
        try:
            yield running, listener.getsockname()[1]
        finally:
            running.should_exit = True
            async with asyncio.timeout(30):
                await task


async def sent(port: int, data: bytes, context: ssl.SSLContext | None = None) -> bytes:
    """Everything that is answered until the server closes the connection."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost" if context else None
    )
    with contextlib.closing(writer):
        writer.write(data)
        async with asyncio.timeout(30):
            try:
                return await reader.read()
            except ConnectionResetError:
                return b""


# --- the local authority --------------------------------------------------------------------------------------------


def test_the_authority_is_made_once_and_its_keys_are_private(tmp_path: Path) -> None:
    authority = made(tmp_path / "tls")
    before = {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()}
    assert before.keys() == {"ca.key", "ca.pem", "server.pem"}
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "tls").iterdir()}
    assert modes == {"ca.key": 0o600, "ca.pem": 0o644, "server.pem": 0o600}
    assert (tmp_path / "tls").stat().st_mode & 0o777 == 0o700
    assert not authority.ensure(NAMES)
    assert {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()} == before
    assert set(read_certificate(authority.server_file).names) == set(NAMES)


def test_another_name_and_a_near_end_renew_the_certificate_but_not_the_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authority_module, "_SERVER_DAYS", 29)
    authority = made(tmp_path)
    ca = authority.certificate_file.read_bytes()
    monkeypatch.undo()
    assert authority.ensure(NAMES)
    assert read_certificate(authority.server_file).expires_at - datetime.now(UTC) > timedelta(days=80)
    assert not authority.ensure(NAMES)
    assert authority.ensure([*NAMES, "runner.example", "192.0.2.7"])
    assert "192.0.2.7" in read_certificate(authority.server_file).names
    assert not authority.ensure(NAMES)
    assert authority.certificate_file.read_bytes() == ca


def test_a_crash_between_key_and_certificate_is_repaired_and_a_lost_key_is_not_replaced(tmp_path: Path) -> None:
    authority = made(tmp_path)
    authority.certificate_file.unlink()
    assert not authority.ensure(NAMES)  # the server's certificate is still good: the key is the same
    parsed = x509.load_pem_x509_certificate(authority.certificate_file.read_bytes())
    assert parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    (tmp_path / "ca.key").unlink()
    with pytest.raises(HostError, match=r"ca\.key is missing"):
        authority.ensure(NAMES)
    (tmp_path / "ca.key").write_text("garbage")
    with pytest.raises(HostError, match="damaged"):
        authority.ensure(NAMES)


def test_a_certificate_of_another_authority_is_replaced(tmp_path: Path) -> None:
    one, two = made(tmp_path / "one"), made(tmp_path / "two")
    two.server_file.write_bytes(one.server_file.read_bytes())
    assert two.ensure(NAMES)
    two.server_file.write_bytes(b"garbage")
    assert two.ensure(NAMES)


def test_a_name_that_no_certificate_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="host name or an address"):
        LocalAuthority(tmp_path).ensure(["bücher.example"])


def test_the_names_are_those_by_which_clients_reach_the_host() -> None:
    assert {"localhost", "127.0.0.1", "::1", socket.gethostname(), "b.example"} <= set(
        host_names("0.0.0.0", ["b.example"])
    )
    assert "192.0.2.9" in host_names("192.0.2.9", [])


# --- files ----------------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_used_are_refused_with_the_reason(tmp_path: Path) -> None:
    authority, other = made(tmp_path / "one"), made(tmp_path / "two")
    good = authority.server_file
    (tmp_path / "text").write_text("hello")
    encrypted = tmp_path / "encrypted"
    key = authority_module.ec.generate_private_key(authority_module.ec.SECP256R1())
    serialization = authority_module.serialization
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    cases = {
        (tmp_path / "none", good): "cannot read the TLS certificate .*No such file",
        (good, tmp_path / "none"): "cannot read the TLS key .*No such file",
        (tmp_path / "text", good): "is no PEM file with a certificate",
        (good, tmp_path / "text"): "is no PEM file with a private key",
        (good, other.server_file): "does not belong to the certificate",
        (good, encrypted): "encrypted with a password",
        (tmp_path, good): "cannot read the TLS certificate .*directory",
    }
    for (certificate, key_file), reason in cases.items():
        with pytest.raises(InvalidOption, match=reason):
            ServerTls(certificate, key_file, certificate)


def test_settings_of_tls_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    file = made(tmp_path / "tls").server_file
    assert tls_of(Settings(data_dir=tmp_path)) is None
    with pytest.raises(InvalidOption, match="--tls-key is missing"):
        tls_of(Settings(data_dir=tmp_path, tls_cert=file))
    with pytest.raises(InvalidOption, match="--tls-cert is missing"):
        tls_of(Settings(data_dir=tmp_path, tls_key=file))
    with pytest.raises(InvalidOption, match="not both"):
        tls_of(Settings(data_dir=tmp_path, tls="generate", tls_cert=file, tls_key=file))


async def test_a_changed_certificate_is_used_for_new_connections(api: Served, tmp_path: Path) -> None:
    authority = made(tmp_path / "tls")
    tls = tls_from(authority)
    async with listening(api, tls) as (_, port):
        client = httpx.AsyncClient(verify=trusting(authority), base_url=f"https://localhost:{port}")
        async with client:
            assert (await client.get("/healthz")).status_code == 200
            before = tls.certificate.fingerprint
            authority.ensure([*NAMES, "new.example"])
            good = authority.server_file.read_bytes()
            authority.server_file.write_bytes(good[:-100])  # half written
            tls.reload()
            assert tls.certificate.fingerprint == before
            authority.server_file.write_bytes(good)
            tls.reload()
            assert tls.certificate.fingerprint != before
            assert (await client.get("/healthz")).status_code == 200  # the open connection goes on

        def presented() -> bytes:
            with (
                socket.create_connection(("127.0.0.1", port), 10) as plain,
                trusting(authority).wrap_socket(plain, server_hostname="new.example") as encrypted,
            ):
                return encrypted.getpeercert(binary_form=True) or b""

        assert (await asyncio.to_thread(presented)) == x509.load_pem_x509_certificate(good).public_bytes(
            authority_module.serialization.Encoding.DER
        )


async def test_the_watch_notices_a_change_and_survives_a_failed_renewal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("belljar.control.api.tls._WATCH_SECONDS", 0.01)
    monkeypatch.setattr("belljar.control.api.tls._RENEW_SECONDS", 0.01)
    authority = made(tmp_path)
    failures = 0

    def renew() -> None:
        nonlocal failures
        failures += 1
        if failures < 3:
            raise HostError("no")
        authority.ensure([*NAMES, "late.example"])

    tls = ServerTls(authority.server_file, authority.server_file, authority.certificate_file, renew)
    watching = asyncio.create_task(tls.watch())
    async with asyncio.timeout(30):
        while "late.example" not in tls.certificate.names:
            await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.wait([watching])


# --- the port -------------------------------------------------------------------------------------------------------


async def test_plain_http_is_answered_and_other_bytes_are_not(api: Served, tmp_path: Path) -> None:
    async with listening(api, tls_from(made(tmp_path / "tls"))) as (running, port):
        answer = await sent(port, b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer bj_x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"use https://" in answer
        assert b"nosniff" in answer
        assert await sent(port, b"\x00\x01\x02") == b""
        assert b"HTTP" not in await sent(port, b"\x16\x03\x01garbage that is no handshake")
        assert not running.server_state.connections


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_new_versions_are_taken_and_old_ones_refused(
    api: Served, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    authority = made(tmp_path / "tls")
    async with listening(api, tls_from(authority)) as (_, port):
        context = trusting(authority)
        context.minimum_version = context.maximum_version = version
        answer = await sent(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", context)
        assert answer.startswith(b"HTTP/1.1 200")
        old = trusting(authority)
        warnings.simplefilter("ignore", DeprecationWarning)  # of the versions below; pytest restores the filters
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await sent(port, b"", old)


async def test_a_handshake_that_does_not_end_is_closed(
    api: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_accept, "HANDSHAKE_SECONDS", 0.2)
    async with listening(api, tls_from(made(tmp_path / "tls"))) as (_, port):
        assert await sent(port, b"") == b""
        assert await sent(port, b"\x16\x03\x01\x02\x00\x01") == b""


async def test_unfinished_handshakes_at_the_limit_make_room(
    api: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "max_connections", lambda _settings: 8)
    authority = made(tmp_path / "tls")
    async with listening(api, tls_from(authority)) as (running, port):
        with contextlib.ExitStack() as stack:
            for number in range(30):
                idle = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                idle.send((b"", b"\x16\x03\x01\x02\x00\x01")[number % 2] or b"\x16")
                await asyncio.sleep(0)
            async with httpx.AsyncClient(verify=trusting(authority)) as client:
                assert (await client.get(f"https://localhost:{port}/healthz")).status_code == 200
            assert len(running.server_state.connections) <= 8


SLOW = {
    "nothing": b"",
    "half a head": b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
    "half a body that nobody wants": b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{",
}


@pytest.mark.parametrize("data", SLOW.values(), ids=SLOW.keys())
async def test_a_slow_client_is_closed_over_tls_too(
    api: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.2)
    authority = made(tmp_path / "tls")
    async with listening(api, tls_from(authority)) as (running, port):
        await sent(port, data, trusting(authority))
        async with asyncio.timeout(30):
            while running.server_state.connections:
                await asyncio.sleep(0.01)


async def test_a_body_over_the_limit_is_refused_over_tls_too(api: Served, tmp_path: Path) -> None:
    authority = made(tmp_path / "tls")
    async with listening(api, tls_from(authority)) as (_, port), httpx.AsyncClient(verify=trusting(authority)) as http:
        response = await http.post(
            f"https://localhost:{port}/v1/jobs", content=b"x" * 30_000_000, headers=api.http.headers
        )
        assert response.status_code == 413
