"""From an error to its one line on stderr and its exit code."""

from __future__ import annotations

import sys

import typer

from belljar.cli.printing import complain
from belljar.errors import BelljarError

#: Said wrongly: as most commands do.
USAGE = 2
FAILED = 1


class Failed(Exception):
    """A command has failed with this exit code; its message, if any, is printed."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def exit_code_of(error: Exception) -> int:
    """Print the error as one line and return the exit code. An error that is a bug is raised again."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, Failed):
        if error.message:
            complain(error.message)
        return error.code
    if isinstance(error, typer.Abort):
        return 130
    message = _message(error)
    if message is None:
        raise error
    complain(message)
    usage = hasattr(error, "format_message")
    return USAGE if usage else FAILED


def _message(error: Exception) -> str | None:
    if isinstance(error, BelljarError):
        return error.message
    if hasattr(error, "format_message"):  # click's own: a wrong option, a missing argument
        return f"{error.format_message()} (try: belljar {' '.join(sys.argv[1:2])} --help)"
    from belljar.client import ServerError, Unreachable

    return str(error) if isinstance(error, ServerError | Unreachable) else None
