"""Pages: pause, resume, fork and snapshot of a sandbox, and the snapshots of the project."""

from __future__ import annotations

from fastapi import APIRouter, Response

from belljar.control.api.audited import audited
from belljar.control.api.dependencies import Cursor
from belljar.control.api.routes.dashboard.answers import go_to, next_page
from belljar.control.api.routes.dashboard.pages import PagesDep
from belljar.control.api.routes.dashboard.sandboxes import show_refused
from belljar.control.api.rules import require
from belljar.control.projects.scopes import Scope
from belljar.control.sandboxes.request import ForkRequest, SnapshotRequest
from belljar.control.web.form_state import validated, whole_number
from belljar.model.errors import BelljarError
from belljar.model.sandbox import SandboxStatus

router = APIRouter(include_in_schema=False)

_PATH = "/sandboxes/{sandbox_id}"
_SNAPSHOTS = "/snapshots"
_PAGE = 50
#: How long a resume is waited for; the page of the sandbox shows the rest.
_RESUME_SECONDS = 5.0


@router.post(f"{_PATH}/pause", dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.pause")
async def pause_sandbox(sandbox_id: str, page: PagesDep) -> Response:
    """Pause a sandbox. The answer comes when everything is kept; until then its page shows `pausing`."""
    fields = await page.form()
    try:
        await page.services.freezing.pause(page.identity.project, sandbox_id)
    except BelljarError as error:
        return await show_refused(page, sandbox_id, fields, error)
    return go_to(f"/sandboxes/{sandbox_id}")


@router.post(f"{_PATH}/resume", dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.resume")
async def resume_sandbox(sandbox_id: str, page: PagesDep) -> Response:
    """Resume a sandbox, and show it; if it stays paused, its page says why."""
    fields = await page.form()
    project = page.identity.project
    try:
        sandbox = await page.services.freezing.request_resume(project, sandbox_id)
        if sandbox.status is SandboxStatus.RESUMING:
            await page.services.sandboxes.wait(
                project, sandbox_id, _RESUME_SECONDS, lambda found: found.status is not SandboxStatus.RESUMING
            )
    except BelljarError as error:
        return await show_refused(page, sandbox_id, fields, error)
    return go_to(f"/sandboxes/{sandbox_id}")


@router.post(f"{_PATH}/fork", dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.fork")
async def fork_sandbox(sandbox_id: str, page: PagesDep) -> Response:
    """Fork a sandbox, and show the copy, or the list with them."""
    fields = await page.form()
    try:
        values = {"count": whole_number(fields, "count") or 0, "secrets": _secrets(fields)}
        forks = await page.services.freezing.fork(page.identity.project, sandbox_id, validated(ForkRequest, values))
    except BelljarError as error:
        return await show_refused(page, sandbox_id, fields, error, of_copies=True)
    return go_to(f"/sandboxes/{forks[0].id}" if len(forks) == 1 else "/sandboxes")


@router.post(f"{_PATH}/snapshot", dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.snapshot")
async def snapshot_sandbox(sandbox_id: str, page: PagesDep) -> Response:
    """Take a snapshot, and show it in the list of all."""
    fields = await page.form()
    try:
        keep = validated(SnapshotRequest, {"secrets": _secrets(fields)}).secrets == "keep"
        made = await page.services.freezing.snapshot(page.identity.project, sandbox_id, keep_secrets=keep)
    except BelljarError as error:
        return await show_refused(page, sandbox_id, fields, error, of_copies=True)
    return go_to(f"{_SNAPSHOTS}#{made.id}")


@router.get(_SNAPSHOTS, dependencies=[require(Scope.SANDBOXES)])
async def show_snapshots(page: PagesDep, cursor: Cursor = None) -> Response:
    """Show the snapshots, newest first."""
    found, after = await page.services.freezing.snapshots(page.identity.project, limit=_PAGE, cursor=cursor)
    return await page.show("snapshots.html", snapshots=found, next=next_page(_SNAPSHOTS, {}, after))


@router.post(f"{_SNAPSHOTS}/{{snapshot_id}}/delete", dependencies=[require(Scope.SANDBOXES)])
@audited("snapshot.delete")
async def delete_snapshot(snapshot_id: str, page: PagesDep) -> Response:
    """Delete a snapshot. Sandboxes that were made from it go on."""
    await page.form()
    await page.services.freezing.delete_snapshot(page.identity.project, snapshot_id)
    return go_to(_SNAPSHOTS)


def _secrets(fields: dict[str, str]) -> str | None:
    return "keep" if fields.get("keep_secrets") == "yes" else None
