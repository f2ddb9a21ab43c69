"""Pages: sign in by OpenID Connect. The provider's response is checked against the browser that began the sign-in."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response

from belljar.control.api.dependencies import ServicesDep
from belljar.control.api.routes.sign_in import HOME, Next, authentication_of, browser_of, signed_in
from belljar.control.api.rules import public
from belljar.control.api.services import Services
from belljar.control.audit.entry import Actor, ActorKind, Entry
from belljar.control.openid.attempt import MAX_SECONDS, Attempt
from belljar.control.openid.client import CALLBACK_PATH, OpenIdClient
from belljar.control.projects.people import Person, Session
from belljar.control.web.forms import local_path
from belljar.model.errors import NotFound, SignInFailed

router = APIRouter(include_in_schema=False)

Text = Annotated[str | None, Query(max_length=4096)]
_ERROR = re.compile(r"[a-z_]{1,40}\Z")


@router.get("/signin/oidc", dependencies=[public()])
async def start_openid_sign_in(request: Request, services: ServicesDep, next: Next = None) -> Response:
    """Send the browser to the provider."""
    client = _client(services)
    attempt = Attempt.begin(local_path(next, HOME))
    response = RedirectResponse(await client.authorization_url(attempt), 303)
    authentication_of(request).cookies.set_sign_in(request.scope, response, attempt.cookie(), MAX_SECONDS)
    return response


@router.get(CALLBACK_PATH, dependencies=[public()])
async def finish_openid_sign_in(
    request: Request,
    services: ServicesDep,
    code: Text = None,
    state: Text = None,
    error: Text = None,
    iss: Text = None,
) -> Response:
    """Start the session of whom the provider vouches for, if a project has invited them."""
    client, authentication = _client(services), authentication_of(request)
    cookies = authentication.cookies
    attempt = Attempt.of_cookie(cookies.sign_in(request.scope, request.headers))
    attempt.check_state(state or "")
    await client.check_issuer(iss)
    if error is not None or code is None:
        reason = error if error is not None and _ERROR.match(error) else "it sent no code"
        raise SignInFailed(f"the provider did not sign you in ({reason}); try again")
    # Anybody may send codes: those that the provider refuses count like invalid keys, and take turns.
    async with authentication.turn(request.scope):
        try:
            verified = await client.person(attempt, code)
        except SignInFailed:
            authentication.count_failure(request.scope)
            raise
    person = await services.people.sign_in(
        issuer=verified.issuer,
        subject=verified.subject,
        email=verified.email,
        name=verified.name,
        is_operator=services.sessions.is_operator(verified.email),
    )
    if person is None:
        raise SignInFailed(
            f"no project has invited {verified.email}; have an owner run: belljar project members set PROJECT "
            f"{verified.email}"
        )
    session, secret = await services.sessions.start_for(person, state=attempt.state, **browser_of(request))
    await _record(request, services, person, session)
    response = await signed_in(request, services, session, secret, attempt.next)
    cookies.remove_sign_in(request.scope, response)
    return response


async def _record(request: Request, services: Services, person: Person, session: Session) -> None:
    """Record the sign-in in the audit log: the middleware takes a GET for a request that changes nothing."""
    await services.auditor.record(
        Entry(
            actor=Actor(kind=ActorKind.PERSON, id=person.id, name=person.email),
            action="session.start",
            project=None,
            object=session.id,
            address=session.address,
            request_id=getattr(request.state, "request_id", None),
            details={"issuer": person.issuer},
        )
    )


def _client(services: Services) -> OpenIdClient:
    if services.openid is None:
        raise NotFound("this server has no identity provider; sign in with a key, or set oidc_issuer")
    return services.openid
