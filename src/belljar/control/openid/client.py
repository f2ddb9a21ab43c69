"""The sign-in as a client of the provider: where to send the browser, and what its response proves."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import httpx
import structlog
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge

from belljar.control.openid.attempt import Attempt
from belljar.control.openid.id_token import checked_claims
from belljar.control.openid.provider import Metadata, Provider
from belljar.control.projects.people import email_of
from belljar.model.errors import DataFolderError, InvalidOption, ProviderError, SignInFailed
from belljar.settings.sign_in import SignInSettings

log = structlog.get_logger()

CALLBACK_PATH = "/signin/oidc/callback"
_MAX_SECRET_BYTES = 4096
_MAX_NAME_CHARACTERS = 200
_MAX_SUBJECT_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class VerifiedPerson:
    """Who signed in, as the provider vouches."""

    issuer: str
    subject: str
    #: Verified by the provider; lower case.
    email: str
    name: str


class OpenIdClient:
    """This server at one provider."""

    def __init__(
        self, provider: Provider, *, client_id: str, secret: str | None, public_url: str, scopes: list[str]
    ) -> None:
        self._provider = provider
        self._client_id = client_id
        self._secret = secret
        self._redirect_uri = public_url + CALLBACK_PATH
        self._scopes = scopes

    async def __aenter__(self) -> OpenIdClient:
        await self._provider.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._provider.__aexit__(*exc)

    async def authorization_url(self, attempt: Attempt) -> str:
        """Return where to send the browser. Raises ProviderError."""
        metadata = await self._provider.metadata()
        url: str = prepare_grant_uri(
            metadata.authorization_endpoint,
            self._client_id,
            "code",
            redirect_uri=self._redirect_uri,
            scope=" ".join(self._scopes),
            state=attempt.state,
            nonce=attempt.nonce,
            code_challenge=create_s256_code_challenge(attempt.verifier),
            code_challenge_method="S256",
        )
        return url

    async def check_issuer(self, issuer: str | None) -> None:
        """Refuse a response of another provider (RFC 9207). Raises SignInFailed, ProviderError."""
        metadata = await self._provider.metadata()
        if issuer is None and not metadata.authorization_response_iss_parameter_supported:
            return
        if issuer != metadata.issuer:
            raise SignInFailed("the response is not from this server's identity provider; sign in again")

    async def person(self, attempt: Attempt, code: str) -> VerifiedPerson:
        """Exchange the code of the provider's response. Return who signed in. Raises SignInFailed, ProviderError."""
        metadata = await self._provider.metadata()
        tokens = await self._exchange(metadata, attempt, code)
        id_token, access_token = tokens.get("id_token"), tokens.get("access_token")
        if not isinstance(id_token, str):
            raise SignInFailed("the provider sent no ID token; the setting oidc_scopes needs openid")
        claims = await checked_claims(
            id_token,
            self._provider,
            client_id=self._client_id,
            nonce=attempt.nonce,
            access_token=access_token if isinstance(access_token, str) else None,
        )
        if "email" not in claims and metadata.userinfo_endpoint is not None and isinstance(access_token, str):
            claims |= await self._userinfo(metadata.userinfo_endpoint, access_token, str(claims["sub"]))
        return self._verified(claims)

    async def _exchange(self, metadata: Metadata, attempt: Attempt, code: str) -> dict[str, Any]:
        body = prepare_token_request(
            "authorization_code", code=code, redirect_uri=self._redirect_uri, code_verifier=attempt.verifier
        )
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        auth = self._client_auth(metadata)
        url, headers, body = auth.prepare("POST", metadata.token_endpoint, headers, body)
        status, tokens = await self._provider.request("POST", url, headers=headers, content=body)
        if status != httpx.codes.OK:
            code = str(tokens.get("error", status))[:40]
            log.warning("sign_in_code_refused", issuer=self._provider.issuer, error=code)
            if code in ("invalid_client", "unauthorized_client"):
                raise ProviderError("the identity provider refuses this server: check oidc_client_id and its secret")
            raise SignInFailed("the provider refused the sign-in's code, which can be used once; sign in again")
        return tokens

    def _client_auth(self, metadata: Metadata) -> ClientAuth:
        if self._secret is None:
            return ClientAuth(self._client_id, None, "none")
        supported = metadata.token_endpoint_auth_methods_supported
        if "client_secret_basic" not in supported and "client_secret_post" in supported:
            return ClientAuth(self._client_id, self._secret, "client_secret_post")
        # The header has both parts encoded as in forms (RFC 6749, 2.3.1), which the library leaves to its caller.
        return ClientAuth(quote_plus(self._client_id), quote_plus(self._secret), "client_secret_basic")

    async def _userinfo(self, url: str, access_token: str, subject: str) -> dict[str, Any]:
        """Return the email and name that the provider has of the subject, where the ID token has none."""
        headers = {"Authorization": f"Bearer {access_token}", "Accept": "application/json"}
        status, value = await self._provider.request("GET", url, headers=headers)
        if status != httpx.codes.OK or value.get("sub") != subject:
            raise SignInFailed("the provider does not tell who you are; sign in again")
        return {name: value[name] for name in ("email", "email_verified", "name") if name in value}

    def _verified(self, claims: dict[str, Any]) -> VerifiedPerson:
        subject, email = claims.get("sub"), claims.get("email")
        if not isinstance(subject, str) or not 0 < len(subject) <= _MAX_SUBJECT_CHARACTERS:
            raise SignInFailed("the provider sent no subject; tell the operator of this server")
        if not isinstance(email, str):
            raise SignInFailed("the provider sent no address of email; the setting oidc_scopes needs email")
        verified = claims.get("email_verified")
        if verified is not True and verified != "true":  # some providers write it as text
            raise SignInFailed("your address of email is not verified at the provider; verify it there, then sign in")
        try:
            address = email_of(email)
        except InvalidOption:
            raise SignInFailed("the provider sent a malformed address of email") from None
        name = claims.get("name")
        shown = "".join(each for each in name if each.isprintable()) if isinstance(name, str) else ""
        return VerifiedPerson(self._provider.issuer, subject, address, shown[:_MAX_NAME_CHARACTERS])


def openid_client(settings: SignInSettings) -> OpenIdClient | None:
    """Return the client that the settings describe; None without a provider. Raises InvalidOption, DataFolderError."""
    if settings.oidc_issuer is None:
        return None
    if settings.oidc_client_id is None:
        raise InvalidOption("oidc_issuer needs oidc_client_id, the id of this server there", option="oidc_client_id")
    if settings.public_url is None:
        raise InvalidOption(
            "oidc_issuer needs public_url, the address that browsers use: the provider sends them back to it",
            option="public_url",
        )
    if not {"openid", "email"} <= set(settings.oidc_scopes):
        raise InvalidOption("oidc_scopes needs openid and email", option="oidc_scopes")
    file = settings.oidc_client_secret_file
    return OpenIdClient(
        Provider(settings.oidc_issuer),
        client_id=settings.oidc_client_id,
        secret=None if file is None else _secret_of(file),
        public_url=settings.public_url,
        scopes=settings.oidc_scopes,
    )


def _secret_of(path: Path) -> str:
    """Return the secret in a file that only its owner can read. Raises DataFolderError."""
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode
            secret = file.read(_MAX_SECRET_BYTES + 1).strip().decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise DataFolderError(f"oidc_client_secret_file {path} cannot be read: {str(error)[:200]}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise DataFolderError(f"oidc_client_secret_file {path} can be read by others; chmod 600 {path}")
    if not secret or len(secret) > _MAX_SECRET_BYTES or not secret.isprintable():
        raise DataFolderError(f"oidc_client_secret_file {path} has no secret: one line of printable text is expected")
    return secret
