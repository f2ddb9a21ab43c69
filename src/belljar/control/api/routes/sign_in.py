"""Pages: sign in with a key, sign out, and the own account with its sessions."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response

from belljar.control.api.audited import audited
from belljar.control.api.authentication import Authentication
from belljar.control.api.dependencies import IdentityDep, ServicesDep
from belljar.control.api.routes.dashboard.pages import PagesDep
from belljar.control.api.rules import anyone, public
from belljar.control.api.services import Services
from belljar.control.projects.people import Session
from belljar.control.store.projects import missing_project
from belljar.control.web.errors import wants_page
from belljar.control.web.forms import local_path, read_form, read_session_form
from belljar.control.web.pages import page
from belljar.model.errors import BelljarError, NotAuthenticated, ProjectSuspended, TooManyFailures

router = APIRouter(include_in_schema=False)

#: Where a sign-in leads to that began on no other page.
HOME = "/"
_ACCOUNT = "/account"
_MAX_BROWSER_CHARACTERS = 200
Next = Annotated[str | None, Query()]


@router.get("/signin", dependencies=[public()])
async def show_sign_in(services: ServicesDep, next: Next = None) -> Response:
    """Show the sign-in page."""
    return sign_in_page(services, next)


@router.post("/signin", dependencies=[public()])
@audited("session.start")
async def sign_in_with_key(request: Request, services: ServicesDep) -> Response:
    """Exchange a key for a session. The key is not kept in the browser."""
    authentication = authentication_of(request)
    authentication.check_same_origin(request.scope, request.headers)
    form = await read_form(request)
    try:
        known = await authentication.key_of(request.scope, form.get("key", "").strip())
    except (NotAuthenticated, TooManyFailures, ProjectSuspended) as error:
        if wants_page(request.scope):
            return sign_in_page(services, form.get("next"), error)
        raise
    request.state.identity = known.identity  # for the audit log
    session, secret = await services.sessions.start_with_key(known.key, **browser_of(request))
    return await signed_in(request, services, session, secret, form.get("next"))


@router.post("/signout", dependencies=[anyone()])
@audited("session.end")
async def sign_out(request: Request, services: ServicesDep, identity: IdentityDep) -> Response:
    """End the session: its cookie is worthless from now on, wherever it is."""
    await read_session_form(request, identity)
    await services.sessions.sign_out(identity)
    response = RedirectResponse("/signin", 303)
    authentication_of(request).cookies.remove_session(request.scope, response)
    return response


@router.get(_ACCOUNT, dependencies=[anyone()])
async def show_account(pages: PagesDep, services: ServicesDep, identity: IdentityDep) -> Response:
    """Show who is signed in, and the sessions."""
    session = identity.session
    return await pages.show(
        "account.html",
        roles=sorted(identity.roles.items()),
        sessions=await services.sessions.list(identity),
        current=session.id if session is not None else None,
    )


@router.post("/account/project", dependencies=[anyone()])
@audited("session.choose_project")
async def choose_project(request: Request, services: ServicesDep, identity: IdentityDep) -> Response:
    """Let the pages of this browser act in another project of the caller's."""
    form = await read_session_form(request, identity)
    name = form.get("project", "")
    is_known = identity.is_operator or name == identity.project or name in identity.roles
    if not is_known or not await services.projects.exists(name):
        raise missing_project(name)
    response = RedirectResponse(local_path(form.get("next"), HOME), 303)
    authentication_of(request).cookies.set_project(request.scope, response, name)
    return response


@router.post("/account/sessions/{session_id}/end", dependencies=[anyone()])
@audited("session.revoke")
async def end_session(session_id: str, request: Request, services: ServicesDep, identity: IdentityDep) -> Response:
    """End another session of the same person or key."""
    await read_session_form(request, identity)
    await services.sessions.revoke(identity, session_id)
    return RedirectResponse(_ACCOUNT, 303)


def sign_in_page(services: Services, next: str | None, error: BelljarError | None = None) -> Response:
    """Return the sign-in page, with what went wrong."""
    settings = services.settings
    return page(
        "sign_in.html",
        200 if error is None else error.status,
        next=local_path(next, HOME),
        error=None if error is None else error.message,
        provider=settings.oidc_name if settings.oidc_issuer is not None else None,
    )


async def signed_in(request: Request, services: Services, session: Session, secret: str, next: str | None) -> Response:
    """Return the response that gives the browser its new session. The one that it had ends: no cookie is kept."""
    cookies = authentication_of(request).cookies
    earlier = cookies.session(request.scope, request.headers)
    if earlier is not None:
        await services.sessions.replace(earlier)
    response = RedirectResponse(local_path(next, HOME), 303)
    cookies.set_session(request.scope, response, secret, session.expires_at)
    return response


def authentication_of(request: Request) -> Authentication:
    """Return what authenticates this server's requests."""
    return cast(Authentication, request.app.state.authentication)


def browser_of(request: Request) -> dict[str, str]:
    """Return where a session is started, for its owner to recognize."""
    browser = request.headers.get("user-agent", "")[:_MAX_BROWSER_CHARACTERS]
    return {
        "address": request.client.host if request.client is not None else "",
        "browser": "".join(character for character in browser if character.isprintable()),
    }
