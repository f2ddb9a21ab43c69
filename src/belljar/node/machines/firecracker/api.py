"""Firecracker's API: HTTP with JSON over the unix socket of one machine's process.

A machine is configured by a file, so only what happens to it later goes through here. Every call has a deadline, and an
error says what Firecracker itself said. The process may be the guest's by now: nothing it answers is believed further
than to be shown.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from belljar.model.errors import MachineDied, MachineError, MachineTimeout
from belljar.node.machines.firecracker.bodies import PartialDrive, SnapshotCreate, SnapshotLoad, body

#: Answers come within a millisecond; what writes memory to a disk takes as long as the disk.
CALL_SECONDS = 10.0
SNAPSHOT_SECONDS = 120.0
_MAX_ANSWER_BYTES = 64 * 1024
_MAX_WORDS = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceInfo:
    """What `GET /` says. `state` is `Not started`, `Running` or `Paused`."""

    id: str
    state: str
    vmm_version: str


class FirecrackerApi:
    """A client of one process. An async context manager: it holds the connection."""

    def __init__(self, socket: Path) -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(socket), verify=False)  # no TLS on a unix socket
        self._http = httpx.AsyncClient(transport=transport, base_url="http://firecracker", timeout=SNAPSHOT_SECONDS)
        #: How many requests were made, for `belljar bench`.
        self.requests = 0

    async def __aenter__(self) -> FirecrackerApi:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def version(self) -> str:
        """Such as 1.16.1."""
        return str((await self.call("GET", "/version")).get("firecracker_version", "unknown"))[:64]

    async def instance(self) -> InstanceInfo:
        answer = await self.call("GET", "/")
        return InstanceInfo(
            id=str(answer.get("id")), state=str(answer.get("state")), vmm_version=str(answer.get("vmm_version"))
        )

    async def pause(self) -> None:
        """Halt the vCPUs, which a snapshot asks for."""
        await self.call("PATCH", "/vm", {"state": "Paused"})

    async def resume(self) -> None:
        await self.call("PATCH", "/vm", {"state": "Resumed"})

    async def create_snapshot(self, snapshot: SnapshotCreate) -> None:
        """Write a paused machine's state and memory."""
        await self.call("PUT", "/snapshot/create", body(snapshot), timeout_seconds=SNAPSHOT_SECONDS)

    async def load_snapshot(self, snapshot: SnapshotLoad) -> None:
        """Make this process, which was told nothing yet, the machine of a snapshot."""
        await self.call("PUT", "/snapshot/load", body(snapshot), timeout_seconds=SNAPSHOT_SECONDS)

    async def update_drive(self, drive: PartialDrive) -> None:
        """Give a running machine's drive another file or another limit."""
        await self.call("PATCH", f"/drives/{drive.drive_id}", body(drive))

    async def call(
        self, method: str, path: str, sent: dict[str, Any] | None = None, *, timeout_seconds: float = CALL_SECONDS
    ) -> dict[str, Any]:
        """One request; returns the answer's object, empty for 204.

        Raises MachineError with Firecracker's own words when it refuses, MachineTimeout when it does not answer in
        time, MachineDied when the process ends under the request.
        """
        self.requests += 1
        what = f"{method} {path}"
        try:
            async with asyncio.timeout(timeout_seconds), self._http.stream(method, path, json=sent) as response:
                return await _answer(response, what)
        except TimeoutError:
            raise MachineTimeout(f"Firecracker did not answer {what} within {timeout_seconds:g} s") from None
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise MachineDied(f"Firecracker went away during {what}: {reason}") from None


async def _answer(response: httpx.Response, what: str) -> dict[str, Any]:
    data = bytearray()
    async for chunk in response.aiter_raw():  # as it comes: nothing that would be larger when it is decompressed
        data += chunk
        if len(data) > _MAX_ANSWER_BYTES:
            raise MachineError(f"Firecracker answered {what} with more than {_MAX_ANSWER_BYTES} bytes")
    answer = _object(bytes(data))
    if response.is_success:
        return answer
    words = str(answer.get("fault_message") or "no reason given")[:_MAX_WORDS]
    raise MachineError(f"Firecracker refused {what} ({response.status_code}): {words}")


def _object(data: bytes) -> dict[str, Any]:
    """The JSON object, or an empty one for anything else."""
    if not data.strip():
        return {}
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
