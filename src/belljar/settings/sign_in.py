"""Settings of the sign-in of people: their sessions, and the OpenID Connect provider."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from belljar.settings.area import Area


def _origin(given: str | None) -> str | None:
    if given is None:
        return None
    parts = urlsplit(given)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/") or parts.query:
        raise ValueError(f"{given[:80]!r} is no origin such as https://belljar.example: a scheme and a host, no path")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _issuer(given: str | None) -> str | None:
    if given is None:
        return None
    parts = urlsplit(given)
    is_local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if not parts.netloc or parts.query or parts.fragment or parts.scheme not in ("https", "http"):
        raise ValueError(f"{given[:80]!r} is no issuer such as https://login.example")
    if parts.scheme == "http" and not is_local:
        raise ValueError(f"{given[:80]!r} needs https: only a provider on this machine may use http")
    return given


def _emails(given: list[str]) -> list[str]:
    for each in given:
        if each.count("@") != 1:
            raise ValueError(f"{each[:80]!r} is no address of email")
    return [each.strip().lower() for each in given]


class SignInSettings(Area):
    """Sign-in: the sessions of people in a browser, and the OpenID Connect provider that knows who they are."""

    public_url: Annotated[str | None, AfterValidator(_origin)] = Field(
        None,
        description="The address that browsers use, such as `https://belljar.example`; OpenID Connect requires it.",
    )
    session_idle_minutes: float = Field(
        480, gt=0, le=43_200, description="A session ends after this long without a request."
    )
    session_lifetime_hours: float = Field(
        168, gt=0, le=8760, description="A session ends this long after its sign-in, whatever happens."
    )
    oidc_issuer: Annotated[str | None, AfterValidator(_issuer)] = Field(
        None, description="Issuer of the OpenID Connect provider, exactly as it names itself."
    )
    oidc_client_id: str | None = Field(None, min_length=1, description="Id of this server at the provider.")
    oidc_client_secret_file: Path | None = Field(
        None, description="File with the client's secret, readable by the server only; none for a public client."
    )
    oidc_scopes: list[str] = Field(
        ["openid", "email", "profile"], description="Scopes to request; `openid` and `email` are needed."
    )
    oidc_name: str = Field(
        "single sign-on", min_length=1, max_length=60, description="Name of the provider on the sign-in page."
    )
    oidc_operators: Annotated[list[str], AfterValidator(_emails)] = Field(
        [], description="Verified addresses of email whose owners are operators; nobody else who signs in becomes one."
    )
