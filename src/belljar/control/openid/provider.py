"""What the provider says about itself: its endpoints (discovery) and its keys, over bounded requests.

Keys are read again when a token names one that is not known, so that the provider may rotate them at any time.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import structlog
from joserfc.errors import JoseError
from joserfc.jwk import Key, import_key
from pydantic import BaseModel, ConfigDict, ValidationError

from belljar.model.errors import ProviderError

log = structlog.get_logger()

_TIMEOUT_SECONDS = 10.0
_MAX_BYTES = 512 * 1024
_MAX_KEYS = 100
#: Endpoints change rarely, keys more often.
_METADATA_SECONDS = 3600.0
_KEYS_SECONDS = 3600.0
#: Tokens with unknown keys make the keys be read again only so often, and failures the description.
_RETRY_SECONDS = 5.0
_ATTEMPTS_AT_ONCE = 8


class Metadata(BaseModel):
    """The part of a provider's description that a sign-in needs (OpenID Connect Discovery 1.0)."""

    model_config = ConfigDict(frozen=True)

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    token_endpoint_auth_methods_supported: list[str] = ["client_secret_basic"]
    authorization_response_iss_parameter_supported: bool = False


class Provider:
    """One provider. An async context manager that owns the connections to it."""

    def __init__(self, issuer: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.issuer = issuer
        self._http = httpx.AsyncClient(
            timeout=_TIMEOUT_SECONDS,
            follow_redirects=False,
            transport=transport,
            headers={"Accept-Encoding": "identity"},
        )
        self._limit = asyncio.Semaphore(_ATTEMPTS_AT_ONCE)
        self._reading = asyncio.Lock()
        self._metadata: tuple[Metadata, float] | None = None
        self._failed: tuple[ProviderError, float] | None = None
        self._keys: tuple[list[Key], float] | None = None

    async def __aenter__(self) -> Provider:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.aclose()

    async def metadata(self) -> Metadata:
        """Return the provider's description. Raises ProviderError."""
        async with self._reading:
            if self._metadata is not None and time.monotonic() - self._metadata[1] < _METADATA_SECONDS:
                return self._metadata[0]
            # Those who wait here while the provider does not answer must not try it one after another.
            if self._failed is not None and time.monotonic() - self._failed[1] < _RETRY_SECONDS:
                raise ProviderError(self._failed[0].message)
            try:
                self._metadata = await self._read_metadata(), time.monotonic()
            except ProviderError as error:
                self._failed = error, time.monotonic()
                raise
            return self._metadata[0]

    async def keys(self, kid: str | None) -> list[Key]:
        """Return the keys that may have signed a token whose header names `kid`. Raises ProviderError."""
        metadata = await self.metadata()
        async with self._reading:
            found = self._fitting(kid)
            age = float("inf") if self._keys is None else time.monotonic() - self._keys[1]
            if age > _KEYS_SECONDS or (not found and age > _RETRY_SECONDS):
                self._keys = await self._read_keys(metadata.jwks_uri), time.monotonic()
                found = self._fitting(kid)
            return found

    async def request(self, method: str, url: str, **rest: Any) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON object of a response of bounded size. Raises ProviderError."""
        try:
            async with (
                asyncio.timeout(2 * _TIMEOUT_SECONDS),
                self._limit,
                self._http.stream(method, url, **rest) as response,
            ):
                body = bytearray()
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > _MAX_BYTES:
                        raise self._error(f"{url} answers with over {_MAX_BYTES} bytes")
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise self._error(f"{url} cannot be reached: {str(error)[:200] or type(error).__name__}") from None
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise self._error(f"{url} answers {response.status_code} without a JSON object")
        return response.status_code, value

    async def _read_metadata(self) -> Metadata:
        url = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        status, value = await self.request("GET", url)
        if status != httpx.codes.OK:
            raise self._error(f"{url} answers {status}")
        try:
            metadata = Metadata.model_validate(value)
        except ValidationError as error:
            raise self._error(f"{url} is no description of a provider: {error.errors()[0]['loc']}") from None
        if metadata.issuer != self.issuer:
            raise self._error(f"{url} names the issuer {metadata.issuer[:200]!r}; set oidc_issuer to exactly that")
        for endpoint in (metadata.authorization_endpoint, metadata.token_endpoint, metadata.jwks_uri):
            self._check_endpoint(endpoint)
        if metadata.userinfo_endpoint is not None:
            self._check_endpoint(metadata.userinfo_endpoint)
        return metadata

    def _check_endpoint(self, url: str) -> None:
        scheme = urlsplit(url).scheme
        if scheme != "https" and scheme != urlsplit(self.issuer).scheme:
            raise self._error(f"the endpoint {url[:200]!r} is not https")

    async def _read_keys(self, url: str) -> list[Key]:
        status, value = await self.request("GET", url)
        given = value.get("keys")
        if status != httpx.codes.OK or not isinstance(given, list):
            raise self._error(f"{url} answers {status} without keys")
        found = []
        for each in given[:_MAX_KEYS]:
            key = _signing_key(each)
            if key is not None:
                found.append(key)
        log.info("provider_keys_read", keys=len(found))
        return found

    def _fitting(self, kid: str | None) -> list[Key]:
        keys = [] if self._keys is None else self._keys[0]
        return [key for key in keys if kid is None or key.kid == kid]

    def _error(self, reason: str) -> ProviderError:
        log.warning("provider_request_failed", issuer=self.issuer, reason=reason)
        return ProviderError(f"the identity provider {self.issuer} cannot be used: {reason}")


def _signing_key(value: Any) -> Key | None:
    """Return a public key that signs; None for another, or one of an unknown kind."""
    if (
        not isinstance(value, Mapping)
        or value.get("kty") not in ("RSA", "EC", "OKP")
        or value.get("use", "sig") != "sig"
    ):
        return None
    try:
        return import_key(dict(value))
    except (JoseError, ValueError, TypeError, KeyError):
        return None
