"""The identity of a machine. Clones of one snapshot share everything until each gets its own."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from belljar.node.guest import wire


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Values that no two machines share."""

    #: wire.SEED_BYTES random bytes.

    seed: bytes
    hostname: str

    @classmethod
    def fresh(cls) -> Identity:
        """Return a new identity from the host's random generator."""
        return cls(seed=secrets.token_bytes(wire.SEED_BYTES), hostname=f"belljar-{secrets.token_hex(4)}")
