"""Acquires machines: from the warm pool, from a snapshot, or by a boot."""
