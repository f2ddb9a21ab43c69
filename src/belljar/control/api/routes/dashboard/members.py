"""Pages: the people of the project, and invitations."""

from __future__ import annotations

from fastapi import APIRouter, Response

from belljar.control.api.audited import audited
from belljar.control.api.routes.dashboard.answers import go_to
from belljar.control.api.routes.dashboard.pages import Pages, PagesDep
from belljar.control.api.rules import require
from belljar.control.projects.people import MemberChange
from belljar.control.projects.scopes import Role, Scope, granted
from belljar.control.web.form_state import FormState, validated
from belljar.model.errors import BelljarError

router = APIRouter(include_in_schema=False)

_PATH = "/members"


@router.get(_PATH, dependencies=[require(Scope.PROJECT_ADMIN)])
async def show_members(page: PagesDep) -> Response:
    """Show the members and invitations."""
    return await _show(page, FormState())


@router.post(_PATH, dependencies=[require(Scope.PROJECT_ADMIN)])
@audited("member.set")
async def set_member(page: PagesDep) -> Response:
    """Invite somebody, or change a member's role."""
    fields = await page.form()
    try:
        change = validated(MemberChange, {"role": fields.get("role")})
        await page.services.members.set(page.identity, page.identity.project, fields.get("email", ""), change)
    except BelljarError as error:
        return await _show(page, page.rejected(fields, error), error.status)
    return go_to(_PATH)


@router.post(f"{_PATH}/remove", dependencies=[require(Scope.PROJECT_ADMIN)])
@audited("member.remove")
async def remove_member(page: PagesDep) -> Response:
    """Remove a member or an invitation."""
    fields = await page.form()
    await page.services.members.remove(page.identity, page.identity.project, fields.get("email", ""))
    return go_to(_PATH)


async def _show(page: Pages, form: FormState, status: int = 200) -> Response:
    roles = [(role.value, role.value) for role in Role if granted(role, ()) <= page.identity.scopes]
    return await page.show(
        "members.html",
        status=status,
        form=form,
        project=page.identity.project,
        members=await page.services.members.list(page.identity, page.identity.project),
        roles=roles,
        has_provider=page.services.settings.oidc_issuer is not None,
    )
