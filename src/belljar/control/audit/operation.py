"""The action that is being carried out, for the transaction that makes its change to record.

The API sets one for each request, a command for itself. What changes data calls `record_change` (store/audit.py) in its
transaction: the change and its record are committed together, or neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from belljar.control.audit.entry import Actor, Entry


class Operation(Protocol):
    """An action that is being carried out."""

    #: Whether a record of it is written, or none is necessary.
    is_recorded: bool

    def covers(self, action: str) -> bool:
        """Return whether the operation is this action."""
        ...

    def entry(self, action: str, project: str | None, changed: str | None, details: dict[str, Any]) -> Entry:
        """Return the entry of the action after its success. `changed` is the object's id."""
        ...


_current: ContextVar[Operation | None] = ContextVar("audited_operation", default=None)


def current_operation(action: str) -> Operation | None:
    """Return the operation that is being carried out if it is this action.

    One change is often part of another action, as the upload of inline code is part of a submission.
    """
    operation = _current.get()
    return operation if operation is not None and operation.covers(action) else None


def record_nothing(action: str) -> None:
    """Note that the current operation, if it is this action, changes nothing: it is a repeated request."""
    if (operation := current_operation(action)) is not None:
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
    """What does not come over the network: an action of belljar itself, or any of a command on the host."""

    def __init__(self, actor: Actor) -> None:
        self.is_recorded = False
        self._actor = actor

    def covers(self, action: str) -> bool:
        """Return True: whatever it changes is its action."""
        return True

    def entry(self, action: str, project: str | None, changed: str | None, details: dict[str, Any]) -> Entry:
        """Return the entry of the action."""
        return Entry(actor=self._actor, action=action, project=project, object=changed, details=details)
