"""What callers of sandboxes were told, and whether that can be true: the checker of the soak."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from belljar.model.sandbox import EndReason, SandboxEnd, SandboxStatus

#: Ends that nobody asked for and that the soak causes: by killing servers and machines, and by faults of their links.
CAUSED = frozenset(
    {EndReason.NODE_LOST, EndReason.MACHINE_DIED, EndReason.WORKER_STOPPED, EndReason.NO_ROOM, EndReason.START_FAILED}
)


@dataclass
class Report:
    """One command, and what its caller was told about it."""

    token: str
    expected: bytes
    code: int
    stdout: bytes = b""
    #: The exits that were told: one, or none when the stream broke off or the call was refused.
    exits: list[int | None] = field(default_factory=list)
    #: Why no exit was told.
    failure: str | None = None

    def faults(self) -> list[str]:
        """Return what cannot be true."""
        if len(self.exits) > 1:
            return [f"{self.token}: {len(self.exits)} exits"]
        if not self.exits:
            return [] if self.failure else [f"{self.token}: neither an exit nor a failure was told"]
        found = []
        if self.exits[0] != self.code:
            found.append(f"{self.token}: exit {self.exits[0]}, not {self.code}")
        if self.stdout != self.expected:
            found.append(f"{self.token}: {len(self.stdout)} bytes of output, not the {len(self.expected)} expected")
        return found


@dataclass
class Life:
    """One sandbox, from the request for it to its end."""

    number: int
    #: How it is to end if nothing is killed.
    wanted: EndReason
    id: str | None = None
    commands: list[Report] = field(default_factory=list)
    #: Tokens of its commands in the order in which they ran, as a file in the sandbox has them; None: it was not read.
    ran: list[str] | None = None
    end: dict[str, Any] | None = None
    #: What a scenario found to be wrong.
    wrong: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """Return what cannot be true."""
        found = [*self.wrong, *(fault for report in self.commands for fault in report.faults())]
        if self.ran is not None:
            counts = Counter(self.ran)
            found += [f"{token} ran {count} times" for token, count in counts.items() if count > 1]
            found += [
                f"{report.token} has an exit and never ran"
                for report in self.commands
                if report.exits and not counts[report.token]
            ]
        if self.id is not None:
            found += self._faults_of_end()
        return [f"sandbox {self.number} ({self.id}): {fault}" for fault in found]

    def _faults_of_end(self) -> list[str]:
        if self.end is None or self.end["end"] is None:
            return [f"it has no end: {self.end}"]
        status, reason = SandboxStatus(self.end["status"]), EndReason(self.end["end"]["reason"])
        if SandboxEnd(reason=reason, message="").status is not status:
            return [f"it is {status} by {reason}"]
        return (
            []
            if reason is self.wanted or reason in CAUSED or reason is EndReason.DELETED
            else [f"it ended by {reason}"]
        )


@dataclass
class History:
    """All lives, and what the soak did to them."""

    lives: list[Life] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    #: What was left on the host.
    leaked: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """Return everything that is wrong."""
        return [*self.leaked, *(fault for life in self.lives for fault in life.faults())]

    def ends(self) -> Counter[str]:
        """Return how many sandboxes ended by each reason."""
        return Counter(life.end["end"]["reason"] if life.end and life.end["end"] else "none" for life in self.lives)

    def reports(self) -> Counter[str]:
        """Return what callers of commands were told."""
        commands = [report for life in self.lives for report in life.commands]
        return Counter("exit" if report.exits else report.failure or "nothing" for report in commands)
