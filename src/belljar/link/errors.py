"""The errors of calls over the link, besides those of the model.

The first paragraph of each docstring, "cause; what to do", is the class's entry in docs/errors.md.
"""

from __future__ import annotations

from belljar.model.errors import BelljarError, Conflict, HostError


class LeaseLost(Conflict):
    """The node does not hold the lease any more, and nothing was written; wait for the attempt that has the job now."""

    code = "lease_lost"

    def __init__(self, message: str = "the job was given to another attempt, or has ended") -> None:
        super().__init__(message)


class OutputGap(Conflict):
    """Output before this piece is missing, and nothing was kept; resume from the offset `acknowledged`.

    `details` has it.
    """

    code = "output_gap"


class OutputRefused(HostError):
    """No more output of the attempt can be kept, and the job continues without it; check the disk of the server."""

    code = "output_refused"
    status = 507


class LinkUnavailable(HostError):
    """The control plane cannot be reached; wait for the node to try again, or check its connection."""

    code = "link_unavailable"


def classes() -> list[type[BelljarError]]:
    """Return the classes of this module."""
    return [LeaseLost, OutputGap, OutputRefused, LinkUnavailable]
