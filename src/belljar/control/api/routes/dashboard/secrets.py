"""Pages: the secrets of the project. A value goes in, and is in no page."""

from __future__ import annotations

from fastapi import APIRouter, Response

from belljar.control.api.audited import audited
from belljar.control.api.routes.dashboard.answers import go_to
from belljar.control.api.routes.dashboard.pages import Pages, PagesDep
from belljar.control.api.rules import require
from belljar.control.projects.scopes import Scope
from belljar.control.web.form_state import FormState, InvalidForm, lines
from belljar.model.errors import BelljarError
from belljar.model.secrets import SecretValue

router = APIRouter(include_in_schema=False)

_PATH = "/secrets"
_VALUE = frozenset({"value"})
#: A value of 64 KiB, each byte as an escape of three characters.
_MAX_FORM_BYTES = 256 * 1024


@router.get(_PATH, dependencies=[require(Scope.SECRETS_READ)])
async def show_secrets(page: PagesDep) -> Response:
    """Show the names of the secrets."""
    return await _show(page, FormState())


@router.post(_PATH, dependencies=[require(Scope.SECRETS_WRITE)])
@audited("secret.set")
async def set_secret(page: PagesDep) -> Response:
    """Store a new version of a secret."""
    fields = await page.form(_MAX_FORM_BYTES)
    try:
        value = lines(fields.get("value", ""))
        if not value:
            raise InvalidForm({"value": "the value is empty; enter it"})
        await page.services.secrets.set(
            page.identity.project, fields.get("name", "").strip(), SecretValue(value.encode())
        )
    except BelljarError as error:
        return await _show(page, page.rejected(fields, error, _VALUE), error.status)
    return go_to(_PATH)


@router.post(f"{_PATH}/remove", dependencies=[require(Scope.SECRETS_WRITE)])
@audited("secret.remove")
async def remove_secret(page: PagesDep) -> Response:
    """Remove a secret."""
    fields = await page.form()
    await page.services.secrets.remove(page.identity.project, fields.get("name", ""))
    return go_to(_PATH)


async def _show(page: Pages, form: FormState, status: int = 200) -> Response:
    # Who may set secrets without reading their names gets the form alone.
    may_read = page.identity.may(Scope.SECRETS_READ)
    return await page.show(
        "secrets.html",
        status=status,
        form=form,
        secrets=await page.services.secrets.list(page.identity.project) if may_read else [],
        may_write=page.identity.may(Scope.SECRETS_WRITE),
    )
