"""The parts of one frozen machine of the store, as a hypervisor restores them: `FrozenParts`."""

from __future__ import annotations

from dataclasses import dataclass

from belljar.node.frozen.manifest import Manifest
from belljar.node.frozen.store import FrozenStore


@dataclass(frozen=True, slots=True)
class StoredParts:
    """The parts of a frozen machine of a project."""

    store: FrozenStore
    project: str
    manifest: Manifest
    is_shared: bool

    @property
    def id(self) -> str:
        """Implement `FrozenParts.id`."""
        return self.manifest.id

    def names(self) -> frozenset[str]:
        """Implement `FrozenParts.names`."""
        return frozenset(self.manifest.parts)

    def copy(self, name: str, descriptor: int) -> None:
        """Implement `FrozenParts.copy`."""
        self.store.copy_part(self.project, self.manifest, name, descriptor)
