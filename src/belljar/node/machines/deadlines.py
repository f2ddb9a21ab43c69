"""Extends deadlines on hosts where machines boot slowly: every wait for a machine follows `boot_timeout_seconds`.

Each deadline is a constant beside its use, right for a host with the setting's default; its user multiplies it by the
factor of this host.
"""

from __future__ import annotations

#: The default of the setting `boot_timeout_seconds`.
DEFAULT_BOOT_SECONDS = 60.0


def deadline_factor(boot_timeout_seconds: float) -> float:
    """Return the factor for deadlines where a machine may take that long to boot; at least 1."""
    return max(1.0, boot_timeout_seconds / DEFAULT_BOOT_SECONDS)
