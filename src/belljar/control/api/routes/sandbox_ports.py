"""ANY /v1/sandboxes/{id}/ports/{port}/{path}: HTTP and WebSockets to a program that listens in a sandbox.

Pages of a guest share this server's origin: they are served without cookies, with a Content-Security-Policy that lets
them run nothing, and the caller's key never reaches the guest.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response, WebSocket

from belljar.control.api.audited import audited
from belljar.control.api.dependencies import IdentityDep
from belljar.control.api.ingress import http_proxy, websocket_proxy
from belljar.control.api.ingress.headers import PathHeaders
from belljar.control.api.routes import artifacts  # noqa: F401 (registers the path convertor)
from belljar.control.api.rules import require
from belljar.control.api.sandbox_calls import CallDep, watch_identity
from belljar.control.audit.operation import record_nothing
from belljar.control.projects.scopes import Scope

router = APIRouter(prefix="/v1/sandboxes/{sandbox_id}", tags=["sandboxes"])

Port = Annotated[int, Path(ge=1, le=65535, description="The TCP port on the sandbox's loopback device.")]
_PATH = "/ports/{port}/{path:anypath}"
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@audited("sandbox.proxy")
async def pass_request_on(request: Request, port: Port, path: str, call: CallDep) -> Response:
    """Send the request to a program in the sandbox, and return its response, both as they arrive.

    Hop-by-hop headers, `Authorization` and cookies are not passed on; `X-Forwarded-For`, `-Proto`, `-Host` and
    `-Prefix` are added.
    """
    record_nothing("sandbox.proxy")
    prefix, target = _split(request.scope["raw_path"], request.scope["query_string"], port)
    passed = PathHeaders(port, prefix, call.services.settings.public_url)
    return await http_proxy.pass_on(request, call.machine, port, target, passed)


for _method in _METHODS:
    router.add_api_route(
        _PATH,
        pass_request_on,
        methods=[_method],
        name=f"{_method.lower()}_port",
        response_model=None,
        dependencies=[require(Scope.SANDBOXES)],
    )


@router.websocket(_PATH, dependencies=[require(Scope.SANDBOXES)])
async def pass_websocket_on(websocket: WebSocket, port: Port, path: str, call: CallDep, identity: IdentityDep) -> None:
    """Connect a WebSocket to a program in the sandbox."""
    prefix, target = _split(websocket.scope["raw_path"], websocket.scope["query_string"], port)
    changes = call.services.changes
    with changes.watching(call.sandbox.id, of_log=False):
        await websocket_proxy.pass_on(
            websocket,
            call.machine,
            port,
            target.decode("ascii", "replace"),
            PathHeaders(port, prefix, call.services.settings.public_url),
            lambda: watch_identity(identity, changes),
        )


def _split(raw_path: bytes, query: bytes, port: int) -> tuple[str, bytes]:
    """Return the part of the path that leads to the port, and what the program is asked for."""
    before, _, behind = raw_path.partition(b"/ports/")
    _, _, rest = behind.partition(b"/")
    prefix = before.decode("ascii", "replace") + f"/ports/{port}"
    return prefix, b"/" + rest + (b"?" + query if query else b"")
