"""Convert sandboxes to rows and back: the request is in the JSON column `spec`, the results are in `result`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Row, select, type_coerce

from belljar.control.store.metadata import UtcTime
from belljar.control.store.sandbox_tables import port_tokens, sandboxes
from belljar.control.store.schema import NOW_US
from belljar.link.sandboxes import SandboxLease
from belljar.model.sandbox import FrozenState, ResumeProblem, Sandbox, SandboxEnd, SandboxStatus, may_become

#: Fields of the results, apart from those with a column of their own.
_RESULT = frozenset(
    {"end", "machine", "timings", "secret_versions", "parent", "request_sha256", "frozen", "problem", "paused_seconds"}
)
#: Fields that are columns of the same name: the rest.
_COLUMNS = frozenset(Sandbox.model_fields) - _RESULT - {"spec"}


def values_of(sandbox: Sandbox) -> dict[str, Any]:
    """Return the values of a new sandbox's row."""
    resources = sandbox.spec.resources
    return {
        **{name: getattr(sandbox, name) for name in _COLUMNS},
        "status": sandbox.status.value,
        "vcpus": resources.vcpus,
        "memory_mb": resources.memory_mb,
        "disk_mb": resources.disk_mb or 0,
        "image_digest": sandbox.spec.image_digest,
        **frozen_columns(sandbox.frozen),
        "spec": sandbox.spec.model_dump(mode="json", exclude_defaults=True),
        "result": result_of(sandbox),
    }


def frozen_columns(frozen: FrozenState | None) -> dict[str, Any]:
    """Return the columns that follow from the field `frozen`."""
    return {
        "frozen_id": None if frozen is None else frozen.id,
        "frozen_node": None if frozen is None else frozen.node,
    }


def result_of(sandbox: Sandbox) -> dict[str, Any]:
    """Return the value of the column `result`."""
    return sandbox.model_dump(mode="json", include=set(_RESULT), exclude_defaults=True)


def sandbox_of(row: Row[Any]) -> Sandbox:
    """Return the sandbox of a row of the table `sandboxes`."""
    fields = {name: row._mapping[name] for name in _COLUMNS}
    return Sandbox(**fields, spec=row.spec, **row.result)


def read_sandbox(connection: Connection, *which: ColumnElement[bool]) -> Sandbox | None:
    """Return the sandbox that these conditions choose."""
    row = connection.execute(select(sandboxes).where(*which)).one_or_none()
    return None if row is None else sandbox_of(row)


def write_status(connection: Connection, sandbox: Sandbox, status: SandboxStatus, **values: Any) -> bool:
    """Change the status, if the table of transitions allows it from the row's; return whether it was changed."""
    allowed = [origin.value for origin in may_become(status)]
    query = sandboxes.update().where(sandboxes.c.id == sandbox.id, sandboxes.c.status.in_(allowed))
    return connection.execute(query.values(status=status.value, **values)).rowcount == 1


def pause_again(connection: Connection, sandbox: Sandbox, problem: ResumeProblem) -> bool:
    """Pause a sandbox that could not be resumed; return whether it was being resumed."""
    result = result_of(sandbox.model_copy(update={"problem": problem}))
    values = {"lease_until": None, "waiting_since": None, "paused_at": now_plus(0), "result": result}
    return write_status(connection, sandbox, SandboxStatus.PAUSED, **values)


def write_end(connection: Connection, sandbox: Sandbox, end: SandboxEnd) -> bool:
    """End a sandbox, with the tokens for its ports; return whether it was ended by this."""
    connection.execute(port_tokens.delete().where(port_tokens.c.sandbox_id == sandbox.id))
    result = result_of(sandbox.model_copy(update={"end": end}))
    return write_status(
        connection, sandbox, end.status, ended_at=datetime.now(UTC), lease_until=None, waiting_since=None, result=result
    )


def now_plus(seconds: float) -> ColumnElement[Any]:
    """Return the time so many seconds from now, by the database's clock."""
    return type_coerce(NOW_US + int(seconds * 1_000_000), UtcTime)


def is_past(column: ColumnElement[Any], seconds: float = 0.0) -> ColumnElement[bool]:
    """Return the condition that the time in a column was more than so many seconds ago."""
    return type_coerce(column, BigInteger) < NOW_US - int(seconds * 1_000_000)


def last_of(lease: SandboxLease) -> tuple[ColumnElement[bool], ...]:
    """Return the condition that no later lease was given for the sandbox."""
    return (
        sandboxes.c.id == lease.sandbox_id,
        sandboxes.c.fence == lease.fence,
        sandboxes.c.node == lease.node.name,
        sandboxes.c.incarnation == lease.node.incarnation,
    )


def held_by(lease: SandboxLease) -> tuple[ColumnElement[bool], ...]:
    """Return the condition that the lease is held."""
    return (*last_of(lease), sandboxes.c.lease_until.is_not(None))
