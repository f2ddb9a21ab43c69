"""Threads for blocking work on machines and networks: their own, so that requests to the API cannot use them up."""

from __future__ import annotations

from belljar.system.threads import Threads

#: Most of them wait for the kernel or a disk, not for a processor.
_MAX_THREADS = 16

in_thread = Threads("belljar-machines", _MAX_THREADS).run
