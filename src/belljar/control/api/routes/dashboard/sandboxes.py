"""Pages: the sandboxes of the project, a new one, and one with what its machine uses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Query, Response

from belljar.control.api.audited import audited
from belljar.control.api.dependencies import Cursor
from belljar.control.api.ingress.visitors import PARAMETER
from belljar.control.api.routes.dashboard.answers import go_to, next_page
from belljar.control.api.routes.dashboard.pages import Pages, PagesDep
from belljar.control.api.rules import require
from belljar.control.projects.scopes import Scope
from belljar.control.sandboxes.output import public_process
from belljar.control.sandboxes.request import Extension, SandboxRequest
from belljar.control.web.form_state import FormState, decimal, pairs, validated, whole_number
from belljar.link.sandboxes import SandboxMachine
from belljar.model.errors import BelljarError, NotFound
from belljar.model.ids import new_id
from belljar.model.sandbox import Sandbox, SandboxStatus
from belljar.model.sandbox_values import ListeningPort, SandboxUsage

router = APIRouter(include_in_schema=False)

_PATH = "/sandboxes"
_PAGE = 50
#: How long a page waits for an answer of a machine, which is hostile and may never answer.
_ANSWER_SECONDS = 3.0
#: How long a deletion waits for the machine to be gone; the page of the sandbox shows the rest.
_END_SECONDS = 5.0
_MINUTE = 60
#: How long the link to a port is valid.
_LINK_SECONDS = 3600.0
#: Options of the API → the fields of these forms.
_FIELDS = {"lifetime_seconds": "lifetime_minutes", "idle_seconds": "idle_minutes", "image": "template"}
_IMAGE = "image:"
#: Processes on the page of a sandbox, the newest.
_MAX_PROCESSES = 100
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineView:
    """What a sandbox's machine says now. None: it was not asked, or gave no answer; `problem` says why."""

    usage: SandboxUsage | None = None
    processes: list[dict[str, Any]] | None = None
    ports: tuple[ListeningPort, ...] | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class PortLink:
    """The link that opens a port in a browser: it has a token, and is shown once."""

    port: int
    url: str


@router.get(_PATH, dependencies=[require(Scope.SANDBOXES)])
async def show_sandboxes(
    page: PagesDep,
    status: Annotated[str, Query(max_length=20)] = "",
    label: Annotated[str, Query(max_length=400)] = "",
    cursor: Cursor = None,
) -> Response:
    """Show the sandboxes, newest first."""
    wanted = SandboxStatus(status) if status in {each.value for each in SandboxStatus} else None
    label = label.strip()
    sandboxes, after = await page.services.sandboxes.list(
        page.identity.project, status=wanted, label=label or None, limit=_PAGE, cursor=cursor
    )
    chosen = {"status": wanted.value if wanted is not None else "", "label": label}
    return await page.show(
        "sandboxes.html",
        sandboxes=sandboxes,
        statuses=[each.value for each in SandboxStatus],
        filter=chosen,
        is_filtered=any(chosen.values()),
        next=next_page(_PATH, chosen, after),
    )


@router.get(f"{_PATH}/new", dependencies=[require(Scope.SANDBOXES)])
async def show_new_sandbox(page: PagesDep, snapshot: Annotated[str, Query(max_length=80)] = "") -> Response:
    """Show the form for a sandbox, or for one that goes on from a snapshot."""
    if snapshot:
        await page.services.freezing.get_snapshot(page.identity.project, snapshot)
    return await _show_new(page, FormState(values={"snapshot": snapshot}))


@router.post(_PATH, dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.create")
async def create_sandbox(page: PagesDep) -> Response:
    """Create a sandbox, and show it at once, while its machine starts."""
    fields = await page.form()
    try:
        options = _request_of(fields)
        async with page.services.submitting.slot(page.identity.id):
            sandbox = await page.services.sandboxes.create(page.identity.project, options)
    except BelljarError as error:
        return await _show_new(page, page.rejected(fields, error, names=_FIELDS), error.status)
    return go_to(f"{_PATH}/{sandbox.id}")


@router.get(f"{_PATH}/{{sandbox_id}}", dependencies=[require(Scope.SANDBOXES)])
async def show_sandbox(sandbox_id: str, page: PagesDep) -> Response:
    """Show a sandbox."""
    return await _show(page, sandbox_id, FormState())


@router.get(f"{_PATH}/{{sandbox_id}}/live", dependencies=[require(Scope.SANDBOXES)])
async def show_sandbox_state(
    sandbox_id: str, page: PagesDep, shown: Annotated[str, Query(max_length=20)] = ""
) -> Response:
    """Return the part of a sandbox's page that changes by itself.

    A page that was made in another status (`shown`) offers what is not possible now, and is loaded again.
    """
    sandbox = await page.services.sandboxes.get(page.identity.project, sandbox_id)
    if shown and shown != sandbox.status:
        return Response(status_code=204, headers={"HX-Redirect": f"{_PATH}/{sandbox.id}"})
    # Asking the machine is use of it: a page that is left open must not keep an idle one.
    machine = MachineView() if sandbox.spec.idle_seconds is not None else await _machine(page, sandbox, usage_only=True)
    return page.part("sandbox_live.html", sandbox=sandbox, machine=machine)


@router.post(f"{_PATH}/{{sandbox_id}}/extend", dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.extend")
async def extend_sandbox(sandbox_id: str, page: PagesDep) -> Response:
    """Move the end of a sandbox."""
    fields = await page.form()
    try:
        seconds = (decimal(fields, "lifetime_minutes") or 0) * _MINUTE
        wanted = validated(Extension, {"lifetime_seconds": seconds}, names=_FIELDS)
        await page.services.sandboxes.extend(page.identity.project, sandbox_id, wanted.lifetime_seconds)
    except BelljarError as error:
        return await _show(page, sandbox_id, page.rejected(fields, error, names=_FIELDS), error.status)
    return go_to(f"{_PATH}/{sandbox_id}")


@router.post(f"{_PATH}/{{sandbox_id}}/delete", dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.delete")
async def delete_sandbox(sandbox_id: str, page: PagesDep) -> Response:
    """End a sandbox with everything in it."""
    await page.form()
    sandbox = await page.services.sandboxes.delete(page.identity.project, sandbox_id)
    if not sandbox.status.terminal:
        await page.services.sandboxes.wait(sandbox.project, sandbox.id, _END_SECONDS, lambda it: it.status.terminal)
    return go_to(f"{_PATH}/{sandbox_id}")


@router.post(f"{_PATH}/{{sandbox_id}}/ports/{{port}}/link", dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.create_port_token")
async def link_port(sandbox_id: str, port: Annotated[int, Path(ge=1, le=65535)], page: PagesDep) -> Response:
    """Make a token for a port, and show the link with which a browser opens the port."""
    await page.form()
    services, domain = page.services, page.services.sandbox_domain
    if domain is None:
        raise NotFound("this server gives ports no host names; set sandbox_domain, or use the port's path with a key")
    _, secret = await services.ports.create_token(page.identity.project, sandbox_id, port, _LINK_SECONDS)
    address = domain.url(sandbox_id, port, str(page.request.url))
    link = PortLink(port, f"{address}?{PARAMETER.decode()}={secret}")
    return await _show(page, sandbox_id, FormState(), 201, link=link)


def _request_of(fields: dict[str, str]) -> SandboxRequest:
    """Return the sandbox that a form describes. Raises InvalidForm."""
    lifetime, idle = (decimal(fields, name) for name in ("lifetime_minutes", "idle_minutes"))
    of_any = {
        "env": pairs(fields.get("env", ""), "env"),
        "lifetime_seconds": None if lifetime is None else lifetime * _MINUTE,
        "idempotency_key": fields.get("idempotency_key") or None,
    }
    if fields.get("snapshot"):  # which has everything else
        return validated(SandboxRequest, {"snapshot": fields["snapshot"], **of_any}, names=_FIELDS)
    chosen = fields.get("template", "").strip()
    shape = {name: whole_number(fields, name) for name in ("vcpus", "memory_mb", "disk_mb")}
    egress = [each for each in fields.get("egress", "").replace(",", " ").split() if each]
    return validated(
        SandboxRequest,
        {
            "template": None if chosen.startswith(_IMAGE) else chosen or None,
            "image": chosen.removeprefix(_IMAGE) if chosen.startswith(_IMAGE) else None,
            "shape": {name: value for name, value in shape.items() if value is not None},
            "egress": egress[0] if len(egress) == 1 else tuple(egress) or "none",
            "secrets": tuple(fields.get("secrets", "").split()),
            "user": "root" if fields.get("user") == "root" else None,
            "idle_seconds": None if idle is None else idle * _MINUTE,
            "labels": pairs(fields.get("labels", ""), "labels"),
            **of_any,
        },
        names=_FIELDS,
    )


async def _show_new(page: Pages, form: FormState, status: int = 200) -> Response:
    images = await asyncio.to_thread(page.services.images.list)
    languages = sorted({language.name for image in images for language in image.manifest.languages})
    settings = page.services.settings
    may_name_secrets = page.identity.may(Scope.SECRETS_READ)
    secrets = await page.services.secrets.list(page.identity.project) if may_name_secrets else []
    return await page.show(
        "sandbox_new.html",
        status=status,
        form=form,
        templates=[(name, name) for name in languages],
        images=[(f"{_IMAGE}{image.name}", f"image {image.name}") for image in images],
        secrets=[secret.name for secret in secrets],
        # The same form sent twice makes one sandbox.
        idempotency_key=form.value("idempotency_key") or new_id("page"),
        default_minutes=f"{settings.default_sandbox_lifetime_seconds / _MINUTE:g}",
        max_minutes=f"{settings.max_sandbox_lifetime_seconds / _MINUTE:g}",
    )


async def show_refused(
    page: Pages, sandbox_id: str, fields: dict[str, str], error: BelljarError, *, of_copies: bool = False
) -> Response:
    """Show a sandbox with why something was refused: beside the forms for copies, or above everything."""
    refused = page.rejected(fields, error)
    if of_copies:
        return await _show(page, sandbox_id, FormState(), error.status, copies=refused)
    return await _show(page, sandbox_id, refused, error.status)


async def _show(
    page: Pages,
    sandbox_id: str,
    form: FormState,
    status: int = 200,
    *,
    link: PortLink | None = None,
    copies: FormState | None = None,
) -> Response:
    sandbox = await page.services.sandboxes.get(page.identity.project, sandbox_id)
    return await page.show(
        "sandbox.html",
        status=status,
        form=form,
        copies=copies or FormState(),
        sandbox=sandbox,
        machine=await _machine(page, sandbox),
        base_url=str(page.request.base_url).rstrip("/"),
        kept_until=_kept_until(page, sandbox),
        has_port_hosts=page.services.sandbox_domain is not None,
        link=link,
    )


def _kept_until(page: Pages, sandbox: Sandbox) -> datetime | None:
    """Return when a paused sandbox ends unless it is resumed; None: never, or it is not paused."""
    days = page.services.settings.keep_paused_sandboxes_days
    return sandbox.paused_at + timedelta(days=days) if sandbox.paused_at is not None and days else None


async def _machine(page: Pages, sandbox: Sandbox, *, usage_only: bool = False) -> MachineView:
    """Ask the machine of a running sandbox, for a few seconds."""
    if sandbox.status is not SandboxStatus.RUNNING:
        return MachineView()
    try:
        _, machine = await page.services.sandboxes.machine(sandbox.project, sandbox.id)
        usage = _in_time(machine.usage())
        if usage_only:
            return MachineView(usage=await usage)
        used, ports, processes = await asyncio.gather(usage, _in_time(machine.ports()), _processes(machine))
        return MachineView(usage=used, ports=ports, processes=processes)
    except TimeoutError:
        return MachineView(problem=f"Its machine gave no answer within {_ANSWER_SECONDS:g} s.")
    except BelljarError as error:
        return MachineView(problem=page.message(error))


async def _in_time(answer: Awaitable[T]) -> T:
    async with asyncio.timeout(_ANSWER_SECONDS):
        return await answer


async def _processes(machine: SandboxMachine) -> list[dict[str, Any]]:
    found = await _in_time(machine.processes())
    newest = sorted(found, key=lambda each: (each.exit is None, each.started_at, each.id), reverse=True)
    return [
        {
            **public_process(each),
            "started_at": each.started_at,
            "line": " ".join(each.args),
        }
        for each in newest[:_MAX_PROCESSES]
    ]
