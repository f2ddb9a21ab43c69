"""Which failed requests a client repeats, and when.

A request is repeated only if its repetition cannot do its work twice: reads, submissions with an idempotency key, and
what the server has not begun.
"""

from __future__ import annotations

import random

from belljar.client.errors import ServerError, Unreachable

_FIRST_DELAY_SECONDS = 0.2
_MAX_DELAY_SECONDS = 5.0
#: A server that asks for a longer pause gets no repetition: the caller decides.
_MAX_RETRY_AFTER_SECONDS = 30.0
#: A proxy in front of the server answers with these when the server is gone or does not answer.
_PROXY_FAILED = frozenset({502, 504})


def delay_seconds(
    error: ServerError | Unreachable, attempt: int, *, is_repeatable: bool, max_retries: int
) -> float | None:
    """Return when to repeat a request whose attempt (0, 1…) failed; None: do not repeat it."""
    if attempt >= max_retries:
        return None
    if isinstance(error, Unreachable):
        may_repeat = error.is_temporary and (is_repeatable or not error.was_sent)
    elif error.status in (429, 503):
        # With this header the server refused the request before it began; without it, a quota is reached.
        after = error.retry_after_seconds
        if after is None or after > _MAX_RETRY_AFTER_SECONDS:
            return None
        return after + random.uniform(0, _FIRST_DELAY_SECONDS)  # noqa: S311 (to spread clients, no secret)
    else:
        may_repeat = is_repeatable and error.status in _PROXY_FAILED
    if not may_repeat:
        return None
    bound = min(_MAX_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2**attempt)
    return random.uniform(bound / 2, bound)  # noqa: S311
