"""What a machine and the store of frozen machines give each other: the contents of the machine's parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class PartSource(Protocol):
    """The contents of one part of a machine that is being frozen. They do not change while they are read."""

    @property
    def name(self) -> str:
        """The part's name, such as `memory`."""
        ...

    @property
    def size(self) -> int:
        """The part's bytes."""
        ...

    def pieces(self, *, changed_only: bool) -> Iterator[tuple[int, bytes | None]]:
        """Yield index and contents of every piece that may be other than zeros, in order.

        With `changed_only`, None stands for contents that are those of the part which the machine was started with.
        Blocks. Raises OSError, MachineError.
        """
        ...


class FrozenParts(Protocol):
    """The parts of one frozen machine, for whoever restores it."""

    @property
    def id(self) -> str:
        """The frozen machine's id: equal ids have equal parts."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether other machines may be restored from them at the same time, which share memory that none writes."""
        ...

    def names(self) -> frozenset[str]:
        """Return the names of its parts."""
        ...

    def copy(self, name: str, descriptor: int) -> None:
        """Write a part's contents to an empty file, with holes for zeros. Blocks.

        Raises SnapshotUnusable when they are not what was written, OSError.
        """
        ...
