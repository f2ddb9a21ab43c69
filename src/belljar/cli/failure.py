"""Turns an error into its one line on stderr and its exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import traceback
from pathlib import Path

import typer

from belljar.cli.printing import print_message, print_stderr, printable_lines
from belljar.model.errors import BelljarError

#: A wrong command line. `belljar run` exits with CANNOT_RUN instead: 2 may be the script's own exit code.
USAGE = 2
FAILED = 1
#: belljar could not run the job. Codes below are the script's own.
CANNOT_RUN = 125
#: The reader of the output has gone: the code of a program that SIGPIPE ended.
OUTPUT_CLOSED = 128 + signal.SIGPIPE
INTERRUPTED = 128 + signal.SIGINT
_MAX_TRACEBACK_BYTES = 1 << 20


class Failed(Exception):
    """A command failed. `message` is printed if it is not empty."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def exit_code_of(error: Exception, failed: int = FAILED) -> int:
    """Print the error as one line and return its exit code, `failed` if it has none of its own.

    The traceback of an unexpected error goes to a file that the line names; with --debug also to stderr.
    """
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, Failed):
        if error.message:
            print_message(error.message)
        return error.code
    if isinstance(error, typer.Abort):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return OUTPUT_CLOSED
    if type(error).__name__ == "NoArgsIsHelpError":  # a group without its command; typer does not export the class
        print_stderr(printable_lines(str(error)))
        return USAGE
    message = _message(error)
    if _is_debug():
        print_stderr(printable_lines("".join(traceback.format_exception(error)).rstrip()))
    if message is None:
        print_message(f"{_describe_unexpected(error)}; {_save_traceback(error)}")
        return failed
    print_message(message)
    if hasattr(error, "format_message"):
        return CANNOT_RUN if _parsed_command(error)[:1] == ["run"] else USAGE
    return failed


def _is_debug() -> bool:
    return os.environ.get("BELLJAR_DEBUG", "") not in ("", "0")


def _parsed_command(error: Exception) -> list[str]:
    """Return the part of the command line that was parsed before the mistake."""
    context = getattr(error, "ctx", None)
    return context.command_path.split()[1:] if context is not None else []


def _message(error: Exception) -> str | None:
    if isinstance(error, BelljarError):
        return error.message
    if hasattr(error, "format_message"):  # an error of click: a wrong option, a missing argument
        # If nothing was parsed, an option came before its command.
        command = _parsed_command(error)
        where = "options come after their command; " if not command and hasattr(error, "option_name") else ""
        return f"{error.format_message()} ({where}try: {' '.join(['belljar', *command])} --help)"
    from belljar.client import LocalPathRefused, ServerError, Unreachable

    return str(error) if isinstance(error, ServerError | Unreachable | LocalPathRefused) else None


def _describe_unexpected(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        with contextlib.suppress(OSError):
            if error.filename is not None or Path.cwd():
                named = f" {error.filename}" if error.filename is not None else ""
                return f"cannot use{named or ' a file'}: {error.strerror}"
        return "the working folder was removed; change to another one"
    lines = str(error).strip().splitlines()[:1] or ["no message"]
    return f"unexpected error ({type(error).__name__}: {lines[0][:200]})"


def _save_traceback(error: Exception) -> str:
    """Write the traceback to a file that only this user can read; return a sentence that names it."""
    text = "".join(traceback.format_exception(error))[-_MAX_TRACEBACK_BYTES:]
    for open_place in (_in_state_folder, _in_temporary_folder):
        with contextlib.suppress(OSError, BelljarError):
            descriptor, place = open_place()
            with open(descriptor, "w", errors="replace") as file:  # noqa: PTH123 - of a descriptor
                file.write(text)
            return f"the traceback is in {place}"
    return "run the command again with --debug to see the traceback"


def _in_state_folder() -> tuple[int, str]:
    """Open the one file for the last unexpected error, so that files do not accumulate."""
    from belljar.settings.file import user_folder

    folder = user_folder("XDG_STATE_HOME", ".local/state") / "belljar"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = folder / "last-error.log"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(place, flags, 0o600), str(place)


def _in_temporary_folder() -> tuple[int, str]:
    return tempfile.mkstemp(prefix="belljar-error-", suffix=".log")
