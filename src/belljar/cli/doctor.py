"""`belljar doctor`: check this host and print what to change."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from belljar.cli import options
from belljar.cli.failure import Failed
from belljar.cli.printing import print_json, printable
from belljar.cli.signals import run_async

if TYPE_CHECKING:
    from belljar.doctor.check import Check, Level


def doctor(data_dir: options.DataDir = None, as_json: options.Json = False) -> None:
    """Check what this host can run and print what to change."""
    from belljar.cli.logging import start_logging
    from belljar.doctor.checks import check_host
    from belljar.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    start_logging(settings, "error")
    checks = run_async(check_host(settings))
    _print(checks, as_json=as_json)
    if any(check.level == "fail" for check in checks):
        raise Failed(1)


def _print(checks: list[Check], *, as_json: bool) -> None:
    """Print a line for each check, below it why it matters and the fix."""
    if as_json:
        print_json([asdict(check) for check in checks])
        return
    from rich.console import Console

    console = Console(markup=False, highlight=False, soft_wrap=True)
    styles: dict[Level, str] = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in checks:
        console.print(f"{check.level:5}", style=styles[check.level], end="")
        console.print(f" {check.name}: {printable(check.message)}")
        if check.why:
            console.print(f"      because: {check.why}")
        if check.fix:
            console.print(f"      → {check.fix}")
