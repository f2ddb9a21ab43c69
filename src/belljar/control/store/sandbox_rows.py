"""Convert sandboxes to rows and back: the request is in the JSON column `spec`, the results are in `result`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Row, select, type_coerce

from belljar.control.store.metadata import UtcTime
from belljar.control.store.sandbox_tables import port_tokens, sandboxes
from belljar.control.store.schema import NOW_US
from belljar.model.sandbox import Sandbox, SandboxEnd, SandboxStatus, may_become

#: Fields of the results, apart from those with a column of their own.
_RESULT = frozenset({"end", "machine", "timings", "secret_versions", "parent", "request_sha256"})
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
        "spec": sandbox.spec.model_dump(mode="json", exclude_defaults=True),
        "result": result_of(sandbox),
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
