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

#: Candidates only: most of what is not ASCII can be printed.
_PERHAPS_CONTROL = re.compile(r"[^\x20-\x7e\n]")


def print_json(data: Any) -> None:
    """Print JSON in which what could steer a terminal is escaped: it has the same meaning to programs."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    print(_PERHAPS_CONTROL.sub(lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text))


def print_line(text: str) -> None:
    """Print one line, in which nothing can steer a terminal."""
    print(printable(text))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A plain table, as wide as its content needs; guest's and users' text is escaped."""
    table = Table(*headings, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(printable("" if cell is None else str(cell)) for cell in row))
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 400
    console.print(table)


def printable(text: str) -> str:
    """Text that cannot steer a terminal: control characters are shown, not sent."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable_lines(text: str) -> str:
    """The same for text of several lines."""
    return "\n".join(printable(line) for line in text.split("\n"))


def write_bytes(data: bytes) -> None:
    """Write bytes to stdout as they are, at once. Raises HostError, BrokenPipeError."""
    with _told():
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def complain(message: str) -> None:
    """One line on stderr, if there is anybody to read it."""
    tell(f"belljar: {printable(message)}")


def tell(line: str) -> None:
    """A line on stderr as it is, if there is anybody to read it: that nobody is there ends nothing."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def open_missing_streams() -> None:
    """Open what belljar was started without (`>&-`): another file would get its number, and be written to.

    Writing to a missing stdout fails, as it should; a missing stderr takes everything.
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
    """stdout, which tells its own failures from those of other files. Raises HostError, BrokenPipeError."""

    def write(self, text: str) -> int:
        with _told():
            return super().write(text)

    def flush(self) -> None:
        with _told():
            super().flush()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise HostError(f"cannot write the output: {error.strerror}") from None


def discard_stdout() -> None:
    """Send what is still to be written nowhere: its reader has gone, or its disk is full, and that was told."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class Lines(Progress):
    """Progress as lines on stderr."""

    def step(self, text: str) -> None:
        tell(f"==> {printable(text)}")
