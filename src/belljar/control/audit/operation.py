"""The action that is being carried out, for the transaction that makes its change to record.

The API sets one for each request, a command for itself. What changes data calls `record_change` in its transaction: the
change and its record are committed together, or neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from sqlalchemy import Connection

from belljar.control.audit.entry import Actor, Entry
from belljar.control.store.audit import append


class Operation(Protocol):
    """An action that is being carried out."""

    #: Whether a record of it is written, or none is necessary.
    is_recorded: bool

    @property
    def action(self) -> str:
        """Return the name of the action."""
        ...

    def entry(self, project: str | None, changed: str | None, details: dict[str, Any]) -> Entry:
        """Return the entry of the action after its success. `changed` is the object's id."""
        ...


_current: ContextVar[Operation | None] = ContextVar("audited_operation", default=None)


def record_change(
    connection: Connection, action: str, changed: str | None, *, project: str | None = None, **details: Any
) -> None:
    """Record in this transaction that the current operation changes the object `changed`.

    Does nothing when the current operation is another action: one change is often part of another, as the upload of
    inline code is part of a submission.
    """
    operation = _current.get()
    if operation is not None and operation.action == action:
        append(connection, operation.entry(project, changed, details))
        operation.is_recorded = True


def record_nothing(action: str) -> None:
    """Note that the current operation changes nothing: a repeated request."""
    operation = _current.get()
    if operation is not None and operation.action == action:
        operation.is_recorded = True


@contextmanager
def carrying_out(operation: Operation) -> Iterator[None]:
    """Make `operation` the current one until the block ends."""
    token = _current.set(operation)
    try:
        yield
    finally:
        _current.reset(token)


class OwnOperation:
    """An action that did not come over the network: of belljar itself, or of a command on the host."""

    def __init__(self, actor: Actor, action: str) -> None:
        self.action = action
        self.is_recorded = False
        self._actor = actor

    def entry(self, project: str | None, changed: str | None, details: dict[str, Any]) -> Entry:
        """Return the entry of the action."""
        return Entry(actor=self._actor, action=self.action, project=project, object=changed, details=details)
