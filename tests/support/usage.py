"""Series of machines' usage."""

from __future__ import annotations

from belljar.model.usage_series import UsageSeries


def usage_of(*seconds: float) -> UsageSeries:
    """Return a series with points at these seconds."""
    zeros = (0,) * len(seconds)
    return UsageSeries(
        seconds=seconds,
        cpu=zeros,
        memory_bytes=zeros,
        disk_bytes=zeros,
        processes=zeros,
        received_bytes=zeros,
        sent_bytes=zeros,
    )
