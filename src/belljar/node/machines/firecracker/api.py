"""A client of Firecracker's API: HTTP with JSON over the unix socket of one machine's process.

A file configures a machine, so only later changes use the API. Every call has a deadline, and an error carries
Firecracker's own message. The guest may have taken over the process: answers are bounded and used only as messages.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from belljar.model.errors import MachineDied, MachineError, MachineTimeout
from belljar.node.machines.deadline_uses import noted
from belljar.node.machines.firecracker.bodies import SnapshotCreate, SnapshotLoad, body

#: Answers come within a millisecond; what writes memory to a disk takes as long as the disk.
CALL_SECONDS = 10.0
SNAPSHOT_SECONDS = 120.0
_MAX_ANSWER_BYTES = 64 * 1024
_MAX_MESSAGE = 500


class FirecrackerApi:
    """A client of one process. An async context manager that owns the connection."""

    def __init__(self, socket: Path, *, timeout_factor: float = 1.0) -> None:
        self._factor = timeout_factor
        kept = httpx.Limits(keepalive_expiry=None)  # a process that waits keeps its connection
        transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=kept, verify=False)  # no TLS on a unix socket
        self._http = httpx.AsyncClient(
            transport=transport, base_url="http://firecracker", timeout=SNAPSHOT_SECONDS * timeout_factor
        )
        #: Number of requests made.
        self.requests = 0

    async def __aenter__(self) -> FirecrackerApi:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def version(self) -> str:
        """Return Firecracker's version, such as 1.16.1. Raises as `call` does."""
        return str((await self.call("GET", "/version")).get("firecracker_version", "unknown"))[:64]

    async def pause(self) -> None:
        """Stop the vCPUs, as a snapshot requires. Raises as `call` does."""
        await self.call("PATCH", "/vm", {"state": "Paused"})

    async def resume(self) -> None:
        """Let vCPUs that were stopped continue. Raises as `call` does."""
        await self.call("PATCH", "/vm", {"state": "Resumed"})

    async def create_snapshot(self, snapshot: SnapshotCreate) -> None:
        """Write a paused machine's state and memory. Raises as `call` does."""
        with noted("freeze", SNAPSHOT_SECONDS * self._factor):
            await self.call("PUT", "/snapshot/create", body(snapshot), timeout_seconds=SNAPSHOT_SECONDS)

    async def load_snapshot(self, snapshot: SnapshotLoad) -> None:
        """Make this process, which has no machine yet, the machine of a snapshot. Raises as `call` does."""
        with noted("snapshot_load", SNAPSHOT_SECONDS * self._factor):
            await self.call("PUT", "/snapshot/load", body(snapshot), timeout_seconds=SNAPSHOT_SECONDS)

    async def call(
        self, method: str, path: str, json_body: dict[str, Any] | None = None, *, timeout_seconds: float = CALL_SECONDS
    ) -> dict[str, Any]:
        """Make one request and return the answer's object, empty for 204. The client's factor extends its deadline.

        Raises MachineError with Firecracker's own message when it refuses, MachineTimeout when it does not answer in
        time, MachineDied when the process ends during the request.
        """
        self.requests += 1
        timeout_seconds *= self._factor
        request = f"{method} {path}"
        try:
            async with asyncio.timeout(timeout_seconds), self._http.stream(method, path, json=json_body) as response:
                return await _read_answer(response, request)
        except TimeoutError:
            raise MachineTimeout(f"Firecracker did not answer {request} within {timeout_seconds:g} s") from None
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise MachineDied(f"lost the connection to Firecracker during {request}: {reason}") from None


async def _read_answer(response: httpx.Response, request: str) -> dict[str, Any]:
    data = bytearray()
    async for chunk in response.aiter_raw():  # raw: a compressed answer could be larger
        data += chunk
        if len(data) > _MAX_ANSWER_BYTES:
            raise MachineError(f"Firecracker answered {request} with more than {_MAX_ANSWER_BYTES} bytes")
    answer = _parse_object(bytes(data))
    if response.is_success:
        return answer
    message = str(answer.get("fault_message") or "no reason given")[:_MAX_MESSAGE]
    raise MachineError(f"Firecracker refused {request} ({response.status_code}): {message}")


def _parse_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object, or an empty one for anything else."""
    if not data.strip():
        return {}
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
