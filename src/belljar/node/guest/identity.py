"""Who a machine is. Clones of one snapshot are alike in everything until they are told."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from belljar.node.guest import wire


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a machine has to itself: no two machines are given the same."""

    seed: bytes
    hostname: str

    @classmethod
    def fresh(cls) -> Identity:
        """A new one, from the host's own generator."""
        return cls(seed=secrets.token_bytes(wire.SEED_BYTES), hostname=f"belljar-{secrets.token_hex(4)}")
