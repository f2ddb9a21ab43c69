"""Notes which workers' searches for a job took long and found nothing: those read many queued jobs that do not fit."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, Executable, Row

#: A search with more processor time than this is long. One that reads few jobs takes a fraction of it.
_LONG_SECONDS = 0.002


class JobSearches:
    """The last search of each worker."""

    def __init__(self) -> None:
        self._long: dict[str, float] = {}

    def seconds(self, worker: str) -> float:
        """Return the processor time of the worker's last search if that was long and found nothing, else 0."""
        return self._long.get(worker, 0.0)

    def run(self, worker: str, connection: Connection, query: Executable, values: dict[str, Any]) -> Row[Any] | None:
        """Return the row of the next job; None when nothing fits. Runs in a thread of the database."""
        started = time.thread_time()
        row = connection.execute(query, values).one_or_none()
        seconds = time.thread_time() - started
        if row is None and seconds > _LONG_SECONDS:
            self._long[worker] = seconds
        else:
            self._long.pop(worker, None)
        return row
