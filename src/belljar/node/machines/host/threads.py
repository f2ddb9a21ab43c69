"""A thread pool for blocking work of machines and networks, separate so that API requests cannot exhaust it."""

from __future__ import annotations

from belljar.system.threads import Threads

#: More than there are processors: most of the work waits for the kernel or a disk.
_MAX_THREADS = 16

machine_threads = Threads("belljar-machines", _MAX_THREADS)
in_thread = machine_threads.run
