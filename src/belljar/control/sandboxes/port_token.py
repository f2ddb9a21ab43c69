"""Who may reach a port of a sandbox by its host name, without a key: whoever has its token, or anyone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from belljar.model.sandbox import Sandbox
from belljar.model.value import Value


class PortToken(Value):
    """A token for one port of one sandbox, without its secret."""

    id: str
    sandbox_id: str
    port: int
    created_at: datetime
    expires_at: datetime | None = None
    """None: it is valid until the sandbox ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PortVisit:
    """A visit of a port that is allowed."""

    sandbox: Sandbox
    port: int
    #: What allows it; None: the port is public.
    token: PortToken | None
