"""What a provider says of itself: what is refused, with bounds and deadlines; and settings that do not fit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from belljar.control.openid.client import openid_client
from belljar.control.openid.provider import Provider
from belljar.model.errors import BelljarError, DataFolderError, InvalidOption, ProviderError
from belljar.settings import Settings, load_settings

Answer = Callable[[str, str], bytes]
PATH = "/.well-known/openid-configuration"


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[tuple[Provider, list[str]]]:
    """Serve what `answer` returns for an issuer and a path, and open a provider with that issuer."""
    requests: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readline()).split()[1].decode()
        while (await reader.readline()).strip():
            pass
        requests.append(path)
        writer.write(answer(issuer, path))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        issuer = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Provider(issuer) as provider:
            yield provider, requests


def response(value: Any, status: str = "200 OK") -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def metadata(issuer: str, **changes: Any) -> dict[str, Any]:
    endpoints = {name: f"{issuer}/{name}" for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")}
    return {"issuer": issuer, **endpoints, **changes}


REFUSED: dict[str, Answer] = {
    "another issuer": lambda issuer, _: response(metadata(issuer) | {"issuer": issuer + "/"}),
    "no endpoints": lambda issuer, _: response({"issuer": issuer}),
    "endpoints of another kind": lambda issuer, _: response(metadata(issuer, token_endpoint=7)),
    "an endpoint that is no web address": lambda issuer, _: response(metadata(issuer, jwks_uri="file:///etc/passwd")),
    "not found": lambda issuer, _: response(metadata(issuer), "404 Not Found"),
    "a redirect": lambda issuer, _: response({}, "302 Found\r\nLocation: http://127.0.0.1:1/"),
    "no JSON": lambda *_: response(b"<html>"),
    "no object": lambda *_: response([1]),
    "deep JSON": lambda *_: response(b"[" * 100_000),
    "too much": lambda *_: response(b" " * 600_000 + b"{}"),
    "no HTTP": lambda *_: b"SSH-2.0-x\r\n",
    "nothing": lambda *_: b"",
    "half of it": lambda issuer, _: response(metadata(issuer))[:-3],
}


@pytest.mark.parametrize("answer", REFUSED.values(), ids=REFUSED.keys())
async def test_a_description_that_does_not_fit_is_refused(answer: Answer) -> None:
    async with answering(answer) as (provider, requests), asyncio.timeout(15):
        with pytest.raises(ProviderError, match="the identity provider http"):
            await provider.metadata()
        with pytest.raises(ProviderError):  # not requested again at once
            await provider.metadata()
        assert requests == [PATH]


async def test_keys_of_unknown_and_harmful_kinds_are_left_out() -> None:
    good = {"kty": "EC", "crv": "P-256", "kid": "good", "use": "sig"}
    good |= {"x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}
    others: list[Any] = [
        {"kty": "oct", "k": "AAAA", "kid": "shared"},
        {**good, "use": "enc", "kid": "encrypts"},
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        {"kty": "EC", "kid": "incomplete", "crv": "P-256"},
        {"kty": "new"},
        7,
        None,
    ]

    def answer(issuer: str, path: str) -> bytes:
        return response(metadata(issuer) if path == PATH else {"keys": [*others, good]})

    async with answering(answer) as (provider, requests):
        assert [key.kid for key in await provider.keys(None)] == ["good"]
        assert await provider.keys("shared") == []
        assert len(requests) == 2


async def test_many_sign_ins_at_once_request_the_description_once() -> None:
    async with answering(lambda issuer, _: response(metadata(issuer))) as (provider, requests):
        await asyncio.gather(*(provider.metadata() for _ in range(20)))
        assert requests == [PATH]


def settings(tmp_path: Path, **values: Any) -> Settings:
    given = {"public_url": "https://b.example", "oidc_issuer": "https://l.example", "oidc_client_id": "b"}
    return load_settings(data_dir=tmp_path, **(given | values))


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"oidc_issuer": "http://login.example"}, "oidc_issuer"),
        ({"oidc_issuer": "login.example"}, "oidc_issuer"),
        ({"oidc_issuer": "https://login.example?x=1"}, "oidc_issuer"),
        ({"public_url": "https://b.example/path"}, "public_url"),
        ({"public_url": "b.example"}, "public_url"),
        ({"public_url": None}, "public_url"),
        ({"oidc_client_id": None}, "oidc_client_id"),
        ({"oidc_scopes": ["openid"]}, "oidc_scopes"),
        ({"oidc_operators": ["alice"]}, "oidc_operators"),
        ({"session_idle_minutes": 0}, "session_idle_minutes"),
    ],
)
def test_settings_that_do_not_fit_name_the_setting(tmp_path: Path, values: dict[str, Any], option: str) -> None:
    with pytest.raises(InvalidOption, match=option):
        openid_client(settings(tmp_path, **values))


@pytest.mark.parametrize(
    ("content", "mode"), [("s\n", 0o644), ("", 0o600), ("\n", 0o600), ("x" * 5000, 0o600), ("a\nb", 0o600)]
)
def test_a_file_without_a_safe_secret_is_refused(tmp_path: Path, content: str, mode: int) -> None:
    path = tmp_path / "secret"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(BelljarError, match="oidc_client_secret_file"):
        openid_client(settings(tmp_path, oidc_client_secret_file=path))
    with pytest.raises(DataFolderError, match="cannot be read"):
        openid_client(settings(tmp_path, oidc_client_secret_file=tmp_path / "nothing"))


def test_without_an_issuer_there_is_no_client(tmp_path: Path) -> None:
    assert openid_client(load_settings(data_dir=tmp_path)) is None
