"""The cookies of sessions: out of reach of scripts, not sent with other sites' forms, `__Host-` under TLS."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import Response
from starlette.types import Scope

_SESSION, _SIGN_IN, _PROJECT = "belljar_session", "belljar_sign_in", "belljar_project"
#: How long a browser keeps the project that a person chose: a year.
_PROJECT_SECONDS = 365 * 86_400
_MAX_CHARACTERS = 4096


class Cookies:
    """The names and attributes of the cookies of one server."""

    def __init__(self, public_url: str | None) -> None:
        self._is_public_tls = public_url is not None and public_url.startswith("https://")

    def session(self, scope: Scope, headers: Headers) -> str | None:
        """Return the secret of the session that the request's cookie names."""
        return self._read(scope, headers, _SESSION)

    def sign_in(self, scope: Scope, headers: Headers) -> str | None:
        """Return what the cookie of a sign-in that is under way has."""
        return self._read(scope, headers, _SIGN_IN)

    def set_session(self, scope: Scope, response: Response, secret: str, expires_at: datetime) -> None:
        """Give the browser the cookie of a session."""
        self._set(scope, response, _SESSION, secret, int((expires_at - datetime.now(UTC)).total_seconds()))

    def set_sign_in(self, scope: Scope, response: Response, value: str, seconds: int) -> None:
        """Give the browser the cookie of a sign-in that is under way."""
        self._set(scope, response, _SIGN_IN, value, seconds)

    def project(self, scope: Scope, headers: Headers) -> str | None:
        """Return the project that the person chose on a page. It may not exist any more."""
        return self._read(scope, headers, _PROJECT)

    def set_project(self, scope: Scope, response: Response, project: str) -> None:
        """Let the browser's pages act in this project."""
        self._set(scope, response, _PROJECT, project, _PROJECT_SECONDS)

    def remove_session(self, scope: Scope, response: Response) -> None:
        """Remove the cookie of the session."""
        self._set(scope, response, _SESSION, "", 0)

    def remove_sign_in(self, scope: Scope, response: Response) -> None:
        """Remove the cookie of the sign-in."""
        self._set(scope, response, _SIGN_IN, "", 0)

    def _read(self, scope: Scope, headers: Headers, name: str) -> str | None:
        given = headers.get("cookie")
        if given is None or name not in given or len(given) > _MAX_CHARACTERS:
            return None
        return cookie_parser(given).get(self._name(scope, name)) or None

    def _set(self, scope: Scope, response: Response, name: str, value: str, seconds: int) -> None:
        response.set_cookie(
            self._name(scope, name),
            value,
            max_age=max(0, seconds),
            path="/",
            secure=self._has_tls(scope),
            httponly=True,
            # Not strict: a link from elsewhere to a page must find the session, and the provider's redirect the state.
            samesite="lax",
        )

    def _name(self, scope: Scope, name: str) -> str:
        return f"__Host-{name}" if self._has_tls(scope) else name

    def _has_tls(self, scope: Scope) -> bool:
        return self._is_public_tls or scope.get("scheme") == "https"
