"""How commands print: tables for people, JSON for programs, one line for an error."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from belljar.images.progress import Progress
from belljar.model.errors import HostError

#: Candidates only: most characters beyond ASCII are printable.
_MAYBE_CONTROL = re.compile(r"[^\x20-\x7e\n]")


def print_json(data: Any) -> None:
    """Print JSON with control characters escaped: programs read the same values, and no terminal is controlled."""
    print(_escaped(json.dumps(data, indent=2, ensure_ascii=False)))


def print_json_line(data: Any) -> None:
    """Print JSON in one line, with control characters escaped."""
    print(_escaped(json.dumps(data, ensure_ascii=False)))


def _escaped(text: str) -> str:
    return _MAYBE_CONTROL.sub(lambda match: match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1], text)


def print_line(text: str) -> None:
    """Print one line with control characters escaped."""
    print(printable(text))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a plain table, as wide as its content; control characters are escaped."""
    table = Table(*headings, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(printable("" if cell is None else str(cell)) for cell in row))
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 400
    console.print(table)


def printable(text: str) -> str:
    """Escape control characters, so that the text cannot control a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable_lines(text: str) -> str:
    """Escape control characters in text of several lines."""
    return "\n".join(printable(line) for line in text.split("\n"))


def write_bytes(data: bytes) -> None:
    """Write bytes to stdout unchanged and flush. Raises HostError, BrokenPipeError."""
    with _translate_write_errors():
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def print_message(message: str) -> None:
    """Print one message line on stderr. A closed stderr is ignored."""
    print_stderr(f"belljar: {printable(message)}")


def print_stderr(line: str) -> None:
    """Print a line on stderr unchanged. A closed stderr is ignored."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def open_missing_streams() -> None:
    """Open the standard streams that belljar was started without (`>&-`): another file would get their numbers.

    Writing to a missing stdout fails, as it should; a missing stderr discards everything.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, mode), number)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", errors="replace")  # noqa: SIM115 - a descriptor
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
    before = cast(io.TextIOWrapper | None, sys.stdout)
    encoding = before.encoding if before else "utf-8"
    plain = before.detach() if before else open(1, "wb")  # noqa: SIM115
    sys.stdout = _Output(plain, encoding=encoding, errors="backslashreplace", line_buffering=plain.isatty())


class _Output(io.TextIOWrapper):
    """stdout whose errors are distinct from those of other files. Raises HostError, BrokenPipeError."""

    def write(self, text: str) -> int:
        with _translate_write_errors():
            return super().write(text)

    def flush(self) -> None:
        with _translate_write_errors():
            super().flush()


@contextlib.contextmanager
def _translate_write_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise HostError(f"cannot write the output: {error.strerror}") from None


def discard_stdout() -> None:
    """Discard the rest of the output: its reader has gone or its disk is full, and that was reported."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class ProgressLines(Progress):
    """Prints progress as lines on stderr."""

    def step(self, text: str) -> None:
        print_stderr(f"==> {printable(text)}")
