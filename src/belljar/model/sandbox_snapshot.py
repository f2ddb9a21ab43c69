"""A snapshot of a sandbox as a value: a frozen copy of its machine, from which new sandboxes are made."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from belljar.model.sandbox import FrozenState, SandboxSpec
from belljar.model.value import Value


class SandboxSnapshot(Value):
    """A snapshot, as callers see it."""

    id: str
    project: str
    sandbox_id: str
    """The sandbox that it was taken of."""
    node: str
    """The node that has it; sandboxes made from it run there."""
    created_at: datetime
    stored_bytes: int
    """Bytes of its memory and disks that are not zeros."""
    spec: SandboxSpec
    """What the sandbox was created with: those that are made from the snapshot have the same image and shape."""

    @property
    def frozen(self) -> FrozenState:
        """The frozen machine."""
        return FrozenState(id=self.id, node=self.node, stored_bytes=self.stored_bytes)

    def public(self) -> dict[str, Any]:
        """Return the snapshot as the HTTP API and `--json` print it."""
        shown = self.model_dump(mode="json", exclude={"spec"})
        spec = self.spec.model_dump(mode="json", include={"image", "template", "egress", "user", "labels"})
        return shown | spec | self.spec.resources.model_dump()
