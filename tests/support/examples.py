"""How many examples a property test tries: few in every run, more where BELLJAR_TEST_EXAMPLES multiplies them."""

from __future__ import annotations

import os

_FACTOR = int(os.environ.get("BELLJAR_TEST_EXAMPLES", "1"))


def examples(count: int) -> int:
    return count * _FACTOR
