"""Pages: the keys of the project. A key's secret is in one response, to the form that created it."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Response

from belljar.control.api.audited import audited
from belljar.control.api.dependencies import Cursor
from belljar.control.api.routes.dashboard.answers import go_to, next_page
from belljar.control.api.routes.dashboard.pages import Pages, PagesDep
from belljar.control.api.rules import require
from belljar.control.projects.key_request import NewKey, Rotation
from belljar.control.projects.keys import Key
from belljar.control.projects.scopes import Role, Scope, granted
from belljar.control.web.form_state import FormState, validated, whole_number
from belljar.model.errors import BelljarError

router = APIRouter(include_in_schema=False)

_PATH = "/keys"
_PAGE = 100
_OPERATOR = "operator"
_DAY = 86_400
_LIFETIMES = (
    ("86400", "in a day"),
    (str(30 * _DAY), "in 30 days"),
    (str(90 * _DAY), "in 90 days"),
    (str(365 * _DAY), "in a year"),
    ("", "never"),
)
_ROLES = {
    Role.VIEWER: "Viewer: read jobs, scripts and usage",
    Role.MEMBER: "Member: also run jobs and sandboxes",
    Role.OWNER: "Owner: also keys, members, audit log",
}


@router.get(_PATH, dependencies=[require(Scope.PROJECT_ADMIN)])
async def show_keys(page: PagesDep, cursor: Cursor = None) -> Response:
    """Show the keys of the project, of all projects to an operator."""
    return await _show(page, FormState(), cursor=cursor)


@router.post(_PATH, dependencies=[require(Scope.PROJECT_ADMIN)])
@audited("key.create")
async def create_key(page: PagesDep) -> Response:
    """Create a key, and show its secret."""
    fields = await page.form()
    try:
        new = validated(
            NewKey,
            {
                "name": fields.get("name", "").strip(),
                "project": fields.get("project", "").strip() or None,
                "role": None if fields.get("role") == _OPERATOR else fields.get("role"),
                "admin": fields.get("role") == _OPERATOR,
                "expires_in_seconds": whole_number(fields, "expires_in_seconds"),
            },
        )
        key, secret = await page.services.key_service.create(page.identity, new)
    except BelljarError as error:
        return await _show(page, page.rejected(fields, error), error.status)
    return await _show(page, FormState(), 201, created=key, secret=secret)


@router.post(f"{_PATH}/{{key_id}}/revoke", dependencies=[require(Scope.PROJECT_ADMIN)])
@audited("key.revoke")
async def revoke_key(key_id: str, page: PagesDep) -> Response:
    """Revoke a key."""
    await page.form()
    await page.services.key_service.revoke(page.identity, key_id)
    return go_to(_PATH)


@router.post(f"{_PATH}/{{key_id}}/rotate", dependencies=[require(Scope.PROJECT_ADMIN)])
@audited("key.rotate")
async def rotate_key(key_id: str, page: PagesDep) -> Response:
    """Replace a key, and show the secret of the new one."""
    await page.form()
    key, secret = await page.services.key_service.rotate(page.identity, key_id, Rotation(overlap_seconds=3600))
    return await _show(page, FormState(), 201, created=key, secret=secret)


async def _show(
    page: Pages,
    form: FormState,
    status: int = 200,
    *,
    cursor: str | None = None,
    created: Key | None = None,
    secret: str | None = None,
) -> Response:
    keys, after = await page.services.key_service.page(page.identity, limit=_PAGE, after=cursor or "")
    roles = [(role.value, text) for role, text in _ROLES.items() if granted(role, ()) <= page.identity.scopes]
    if page.identity.is_operator:
        roles.append((_OPERATOR, "Operator: everything, in every project"))
    return await page.show(
        "keys.html",
        status=status,
        form=form,
        keys=keys,
        next=next_page(_PATH, {}, after),
        now=datetime.now(UTC),
        roles=roles,
        lifetimes=_LIFETIMES,
        created=created,
        secret=secret,
    )
