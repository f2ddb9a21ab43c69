"""From an error to its one line on stderr and its exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import traceback
from pathlib import Path

import typer

from belljar.cli.printing import complain, printable_lines, tell
from belljar.model.errors import BelljarError

#: Said wrongly: as most commands do. `belljar run` ends with CANNOT_RUN instead: 2 may be the script's own code.
USAGE = 2
FAILED = 1
#: belljar could not run the job; what is below is the script's own exit code.
CANNOT_RUN = 125
#: Whoever read the output has gone: what a program of its own ends with that SIGPIPE ended.
OUTPUT_CLOSED = 128 + signal.SIGPIPE
INTERRUPTED = 128 + signal.SIGINT
_MAX_TRACEBACK_BYTES = 1 << 20


class Failed(Exception):
    """A command has failed with this exit code; its message, if any, is printed."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def exit_code_of(error: Exception, failed: int = FAILED) -> int:
    """Print the error as one line and return the exit code; `failed` for what has none of its own.

    The traceback of an error that nobody foresaw goes to a file that the line names, with --debug to stderr.
    """
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, Failed):
        if error.message:
            complain(error.message)
        return error.code
    if isinstance(error, typer.Abort):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return OUTPUT_CLOSED
    message = _message(error)
    if _is_debug():
        tell(printable_lines("".join(traceback.format_exception(error)).rstrip()))
    if message is None:
        complain(f"{_unforeseen(error)}; {_keep_traceback(error)}")
        return failed
    complain(message)
    if hasattr(error, "format_message"):
        return CANNOT_RUN if _command_words(error)[:1] == ["run"] else USAGE
    return failed


def _is_debug() -> bool:
    return os.environ.get("BELLJAR_DEBUG", "") not in ("", "0")


def _command_words(error: Exception) -> list[str]:
    """What was understood of the command line before a mistake in it."""
    context = getattr(error, "ctx", None)
    return context.command_path.split()[1:] if context is not None else []


def _message(error: Exception) -> str | None:
    if isinstance(error, BelljarError):
        return error.message
    if hasattr(error, "format_message"):  # click's own: a wrong option, a missing argument
        # Where nothing was understood, an option stood before its command.
        words = _command_words(error)
        where = "options come after their command; " if not words and hasattr(error, "option_name") else ""
        return f"{error.format_message()} ({where}try: {' '.join(['belljar', *words])} --help)"
    from belljar.client import ServerError, Unreachable

    return str(error) if isinstance(error, ServerError | Unreachable) else None


def _unforeseen(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        with contextlib.suppress(OSError):
            if error.filename is not None or Path.cwd():
                named = f" {error.filename}" if error.filename is not None else ""
                return f"cannot use{named or ' a file'}: {error.strerror}"
        return "the working folder does not exist any more; change to another"
    words = str(error).strip().splitlines()[:1] or ["no reason given"]
    return f"something went wrong that belljar did not foresee ({type(error).__name__}: {words[0][:200]})"


def _keep_traceback(error: Exception) -> str:
    """Write the traceback where only this user reads it; says where."""
    text = "".join(traceback.format_exception(error))[-_MAX_TRACEBACK_BYTES:]
    for open_place in (_in_state_folder, _in_temporary_folder):
        with contextlib.suppress(OSError, BelljarError):
            descriptor, place = open_place()
            with open(descriptor, "w", errors="replace") as file:  # noqa: PTH123 - of a descriptor
                file.write(text)
            return f"the traceback is in {place}"
    return "run it again with --debug for the traceback"


def _in_state_folder() -> tuple[int, str]:
    """One file, of the last such error: they do not pile up."""
    from belljar.settings.file import user_folder

    folder = user_folder("XDG_STATE_HOME", ".local/state") / "belljar"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = folder / "last-error.log"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(place, flags, 0o600), str(place)


def _in_temporary_folder() -> tuple[int, str]:
    return tempfile.mkstemp(prefix="belljar-error-", suffix=".log")
