"""The one place that stretches deadlines: where machines come up slowly, all else that waits for them may take longer.

Each deadline is a constant beside what it is for, set for a host on which `boot_timeout_seconds` is right as it is.
"""

from __future__ import annotations

#: The setting's default.
USUAL_BOOT_SECONDS = 60.0


def patience(boot_timeout_seconds: float) -> float:
    """Return the factor for deadlines where a machine may take that long to boot; never below 1."""
    return max(1.0, boot_timeout_seconds / USUAL_BOOT_SECONDS)
