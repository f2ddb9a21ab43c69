"""Pages: a terminal in a sandbox, and signals for its commands."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response

from belljar.control.api.audited import audited
from belljar.control.api.routes.dashboard.answers import go_to
from belljar.control.api.routes.dashboard.pages import PagesDep
from belljar.control.api.rules import require
from belljar.control.api.sandbox_calls import CallDep
from belljar.control.projects.scopes import Scope
from belljar.control.sandboxes.request import SignalRequest
from belljar.control.web.form_state import validated
from belljar.model.sandbox import SandboxStatus

router = APIRouter(include_in_schema=False)

_PATH = "/sandboxes/{sandbox_id}"
_WITH_ALL = "descendants"


@router.get(f"{_PATH}/terminal", dependencies=[require(Scope.SANDBOXES)])
async def show_terminal(sandbox_id: str, page: PagesDep) -> Response:
    """Show a terminal. Its script starts a shell and attaches to it, with the API."""
    sandbox = await page.services.sandboxes.get(page.identity.project, sandbox_id)
    if sandbox.status is not SandboxStatus.RUNNING:
        return await page.show("sandbox_not_running.html", sandbox=sandbox, what="Terminal", tab="terminal")
    return await page.show("sandbox_terminal.html", sandbox=sandbox)


@router.post(f"{_PATH}/processes/{{pid}}/signal", dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.signal")
async def signal_process(
    sandbox_id: str, pid: Annotated[int, Path(ge=1, le=2**31 - 1)], page: PagesDep, call: CallDep
) -> Response:
    """Send a signal to a command, or kill it with all that it started."""
    fields = await page.form()
    process, chosen = await call.process(pid), fields.get("signal", "SIGTERM")
    if chosen == _WITH_ALL:
        await call.machine.kill(process.id)
    else:
        await call.machine.signal(process.id, validated(SignalRequest, {"signal": chosen}).name)
    return go_to(f"/sandboxes/{call.sandbox.id}#processes")
