"""The headers RateLimit-Policy and RateLimit: the quotas of submissions in a time, and what is left of them.

Source: draft-ietf-httpapi-ratelimit-headers-09, section 3 and 4. The policy's name is that of the quota.
"""

from __future__ import annotations

from collections.abc import Iterable

from belljar.model.quotas import WINDOW_SECONDS, RateLimit


def rate_limit_headers(limits: Iterable[RateLimit]) -> dict[str, str]:
    """Return the headers for these limits; none without any."""
    found = list(limits)
    if not found:
        return {}
    policies = (f'"{each.quota}";q={each.limit};w={WINDOW_SECONDS[each.quota]}' for each in found)
    states = (f'"{each.quota}";r={each.left};t={each.reset_seconds}' for each in found)
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)}
