"""What a call over the link can refuse with, besides the errors of the model."""

from __future__ import annotations

from belljar.model.errors import Conflict, HostError


class LeaseLost(Conflict):
    """The caller does not hold this lease any more: nothing was written. The node ends the attempt's machine."""

    code = "lease_lost"

    def __init__(self, message: str = "the job was given to another attempt, or has ended") -> None:
        super().__init__(message)


class OutputGap(Conflict):
    """Output before this piece is missing; `details["acknowledged"]` is the offset to resume from. Nothing was kept."""

    code = "output_gap"


class OutputRefused(HostError):
    """No more output of this attempt can be kept; sending it again does not help. The job goes on without it."""

    code = "output_refused"
    status = 507


class LinkUnavailable(HostError):
    """The control plane cannot be reached just now; the call may be tried again."""

    code = "link_unavailable"
