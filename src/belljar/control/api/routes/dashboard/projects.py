"""Pages: the projects of the server, and the quotas of one."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from fastapi import APIRouter, Response

from belljar.control.api.audited import audited
from belljar.control.api.routes.dashboard.answers import go_to, next_page
from belljar.control.api.routes.dashboard.pages import Pages, PagesDep
from belljar.control.api.routes.projects import After
from belljar.control.api.rules import require
from belljar.control.projects.project_request import NewProject, ProjectChange
from belljar.control.projects.scopes import Scope
from belljar.control.quotas.service import limits_of
from belljar.control.web.form_state import FormState, InvalidForm, validated
from belljar.control.web.shown import count
from belljar.model.errors import BelljarError
from belljar.model.quotas import UNLIMITED, ProjectQuotas

router = APIRouter(include_in_schema=False)

_PATH = "/projects"
_PAGE = 100
_NUMBER = re.compile(r"[0-9]{1,16}\Z")
_DECIMAL = re.compile(r"[0-9]{1,16}(\.[0-9]{1,6})?\Z")
#: Quotas with a fraction, and those with text.
_DECIMALS, _TEXTS = frozenset({"max_timeout_seconds", "keep_jobs_days"}), frozenset({"max_egress"})


@dataclass(frozen=True, kw_only=True, slots=True)
class QuotaRow:
    """One quota in the form of a project."""

    name: str
    label: str
    #: What was set for the project; empty: the default holds.
    value: str
    #: What holds now.
    limit: str
    inputmode: str | None


@router.get(_PATH, dependencies=[require(Scope.PROJECT_ADMIN)])
async def show_projects(page: PagesDep, cursor: After = None) -> Response:
    """Show the caller's project; to an operator all projects."""
    return await _show(page, FormState(), cursor=cursor)


@router.post(_PATH, dependencies=[require(Scope.ADMIN)])
@audited("project.create")
async def create_project(page: PagesDep) -> Response:
    """Create a project."""
    fields = await page.form()
    try:
        new = validated(NewProject, {"name": fields.get("name", "").strip()})
        await page.services.project_service.create(page.identity, new)
    except BelljarError as error:
        return await _show(page, page.rejected(fields, error), error.status)
    return go_to(f"{_PATH}/{new.name}")


@router.get(f"{_PATH}/{{name}}", dependencies=[require(Scope.PROJECT_ADMIN)])
async def show_project(name: str, page: PagesDep) -> Response:
    """Show a project with its quotas."""
    return await _show_one(page, name, FormState())


@router.post(f"{_PATH}/{{name}}/quotas", dependencies=[require(Scope.ADMIN)])
@audited("project.set_quotas")
async def set_quotas(name: str, page: PagesDep) -> Response:
    """Replace the quotas of a project."""
    fields = await page.form()
    try:
        await page.services.quotas.set(name, validated(ProjectQuotas, _entered(fields)))
    except BelljarError as error:
        return await _show_one(page, name, page.rejected(fields, error), error.status)
    page.services.changes.notify_queued()
    return go_to(f"{_PATH}/{name}")


@router.post(f"{_PATH}/{{name}}/suspend", dependencies=[require(Scope.ADMIN)])
@audited("project.change")
async def suspend_project(name: str, page: PagesDep) -> Response:
    """Suspend a project; its running jobs go on."""
    await page.form()
    await page.services.project_service.change(page.identity, name, ProjectChange(suspended=True))
    return go_to(_PATH)


@router.post(f"{_PATH}/{{name}}/resume", dependencies=[require(Scope.ADMIN)])
@audited("project.change")
async def resume_project(name: str, page: PagesDep) -> Response:
    """Resume a suspended project."""
    await page.form()
    await page.services.project_service.change(page.identity, name, ProjectChange(suspended=False))
    return go_to(_PATH)


@router.post(f"{_PATH}/{{name}}/remove", dependencies=[require(Scope.ADMIN)])
@audited("project.remove")
async def remove_project(name: str, page: PagesDep) -> Response:
    """Remove a project and its data."""
    await page.form()
    await page.services.project_service.remove(page.identity, name)
    return go_to(_PATH)


def _entered(fields: dict[str, str]) -> dict[str, object]:
    """Return the quotas as the API takes them. Raises InvalidForm."""
    values: dict[str, object] = {}
    errors: dict[str, str] = {}
    for name in ProjectQuotas.model_fields:
        text = fields.get(name, "").strip()
        if not text:
            continue
        if name in _TEXTS or text == UNLIMITED:
            values[name] = text
        elif name in _DECIMALS and _DECIMAL.match(text):
            values[name] = float(text)
        elif name not in _DECIMALS and _NUMBER.match(text):
            values[name] = int(text)
        else:
            errors[name] = f"{text[:40]!r} is no number; enter one, or nothing for the default"
    if errors:
        raise InvalidForm(errors)
    return values


async def _show(page: Pages, form: FormState, status: int = 200, *, cursor: str | None = None) -> Response:
    projects, after = await page.services.project_service.page(page.identity, limit=_PAGE, after=cursor)
    return await page.show(
        "projects.html",
        status=status,
        form=form,
        listed=projects,
        next=next_page(_PATH, {}, after),
        may_change=page.identity.is_operator,
    )


async def _show_one(page: Pages, name: str, form: FormState, status: int = 200) -> Response:
    project = await page.services.project_service.get(page.identity, name)
    quotas = await page.services.quotas.quotas(name)
    limits = asdict(limits_of(quotas, page.services.quotas.defaults))
    rows = [
        QuotaRow(
            name=quota,
            label=_label(quota),
            value="" if value is None else str(value),
            limit=_limit(limits[quota]),
            inputmode=None if quota in _TEXTS else "decimal",
        )
        for quota, value in quotas
    ]
    return await page.show(
        "project.html", status=status, form=form, project=project, quotas=rows, may_change=page.identity.is_operator
    )


def _label(quota: str) -> str:
    """Return the name of a quota as words: `Storage (MB)`."""
    text = quota.removeprefix("max_").replace("_mb", " (MB)").replace("vcpu", "vCPU").replace("_", " ")
    return text if text.startswith("vCPU") else text[0].upper() + text[1:]


def _limit(value: object) -> str:
    if value is None:
        return "no limit"
    if isinstance(value, int | float):
        return count(value) if value == int(value) else f"{value:g}"
    return str(value)
