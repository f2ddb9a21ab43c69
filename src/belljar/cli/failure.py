"""From an error to its one line on stderr and its exit code."""

from __future__ import annotations

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
        # What was understood of the command line before the mistake; alone, it was an option before its command.
        context = getattr(error, "ctx", None)
        words = context.command_path.split()[1:] if context is not None else []
        where = "options come after their command; " if not words and hasattr(error, "option_name") else ""
        return f"{error.format_message()} ({where}try: {' '.join(['belljar', *words])} --help)"
    from belljar.client import ServerError, Unreachable

    return str(error) if isinstance(error, ServerError | Unreachable) else None
