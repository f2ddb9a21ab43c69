"""Where machines come from: the pool, a snapshot, a boot."""
