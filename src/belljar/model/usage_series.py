"""What a machine used over its life: a few hundred points, from which a plot is drawn.

All numbers come from the guest, which is hostile: the node bounds each by what the machine had, and the control plane
checks the form of the whole.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from belljar.model.value import Value

#: Points of one series. When there are so many, each two become one.
MAX_POINTS = 256
#: The largest integer that every reader of JSON represents exactly.
MAX_COUNT = (1 << 53) - 1

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Amount = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Amounts = Annotated[tuple[Amount, ...], Field(max_length=MAX_POINTS)]
Counts = Annotated[tuple[Count, ...], Field(max_length=MAX_POINTS)]


class UsageSeries(Value):
    """Arrays of equal length: at `seconds[i]` after its start the machine used `memory_bytes[i]`, and so on."""

    interval_seconds: Annotated[float, Field(gt=0, le=1e9)] = 1.0
    """Seconds between points. It doubles when there are 256 points."""
    seconds: Amounts = ()
    """Seconds since the first command began."""
    cpu: Amounts = ()
    """vCPUs in use, on average since the point before."""
    memory_bytes: Counts = ()
    """Memory of the commands, with their page cache; of joined points the largest, as for `processes`."""
    disk_bytes: Counts = ()
    """Bytes in the machine's writable file system."""
    processes: Counts = ()
    received_bytes: Counts = ()
    """Bytes that its network device has received so far."""
    sent_bytes: Counts = ()
    vcpus: Count = 0
    memory_limit_bytes: Count = 0
    disk_limit_bytes: Count = 0

    @model_validator(mode="after")
    def _check(self) -> UsageSeries:
        columns = (self.cpu, self.memory_bytes, self.disk_bytes, self.processes, self.received_bytes, self.sent_bytes)
        if any(len(column) != len(self.seconds) for column in columns):
            raise ValueError("the arrays of a usage series have different lengths")
        if any(after <= before for before, after in zip(self.seconds, self.seconds[1:], strict=False)):
            raise ValueError("the seconds of a usage series do not rise")
        return self
