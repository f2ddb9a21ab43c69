"""The streams of a job's log."""

from __future__ import annotations

from enum import IntEnum


class LogStream(IntEnum):
    """A stream of a job's log, by its number in the log's records."""

    STDOUT = 1
    STDERR = 2
    #: The machine's serial console, and what belljar reports about the attempt.
    CONSOLE = 3
    #: The output of installing the script's packages.
    BUILD = 4
