"""How commands print: tables for people, JSON for programs, one line for an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from belljar.images.progress import Progress


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))


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


def complain(message: str) -> None:
    """One line on stderr."""
    print(f"belljar: {printable(message)}", file=sys.stderr, flush=True)


class Lines(Progress):
    """Progress as lines on stderr."""

    def step(self, text: str) -> None:
        print(f"==> {text}", file=sys.stderr, flush=True)
