"""Checks ID tokens: the signature with a key of the provider, then every claim that binds it to this sign-in."""

from __future__ import annotations

import json
from typing import Any

import structlog
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.util import urlsafe_b64decode

from belljar.control.openid.provider import Provider
from belljar.model.errors import SignInFailed

log = structlog.get_logger()

#: Signatures by keys that only the provider has: neither `none` nor a shared secret.
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"]
#: How far the provider's clock may be from this one.
CLOCK_SKEW_SECONDS = 60
_MAX_CHARACTERS = 64 * 1024


async def checked_claims(
    token: str, provider: Provider, *, client_id: str, nonce: str, access_token: str | None
) -> dict[str, Any]:
    """Return the claims of a valid ID token. Raises SignInFailed, ProviderError."""
    try:
        header = _header(token)
        kid = header.get("kid")
        claims = await _verified(token, header, provider, kid if isinstance(kid, str) else None)
        claims.options = {
            "iss": {"essential": True, "value": provider.issuer},
            "aud": {"essential": True, "value": client_id},
        }
        claims.params = {"nonce": nonce, "client_id": client_id, "access_token": access_token}
        claims.validate(leeway=CLOCK_SKEW_SECONDS)
    except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
        log.warning("id_token_refused", issuer=provider.issuer, reason=f"{type(error).__name__}: {str(error)[:200]}")
        raise SignInFailed("the provider's ID token is not valid for this sign-in; sign in again") from None
    return dict(claims)


async def _verified(token: str, header: dict[str, Any], provider: Provider, kid: str | None) -> CodeIDToken:
    """Return the claims after the check of the signature. Raises JoseError, ValueError."""
    if header.get("alg") not in ALGORITHMS:
        raise ValueError(f"the algorithm {str(header.get('alg'))[:20]!r} is not allowed")
    failure: JoseError | None = None
    for key in await provider.keys(kid):
        try:
            verified = jwt.decode(token, key, algorithms=ALGORITHMS)
        except JoseError as error:
            failure = error
        else:
            return CodeIDToken(verified.claims, verified.header)
    raise failure or ValueError(f"the provider has no key {str(kid)[:80]!r}")


def _header(token: str) -> dict[str, Any]:
    """Return the header of a token, before its signature is checked: for the choice of the key only."""
    if len(token) > _MAX_CHARACTERS or token.count(".") != 2:
        raise ValueError("not a signed token")
    header = json.loads(urlsafe_b64decode(token.partition(".")[0].encode("ascii")))
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    return header
