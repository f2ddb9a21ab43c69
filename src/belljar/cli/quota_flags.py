"""The options of `belljar project set` for quotas, and how quotas are printed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from belljar.cli.printing import print_table
from belljar.model.errors import InvalidOption

_DEFAULT, _UNLIMITED = "default", "unlimited"
_LIMIT, _NUMBER = "N|unlimited|default", "N|default"


def _limit(text: str) -> Any:
    return typer.Option(metavar=_LIMIT, help=text, show_default=False)


def _number(text: str) -> Any:
    return typer.Option(metavar=_NUMBER, help=text, show_default=False)


@dataclass(frozen=True, kw_only=True)
class QuotaFlags:
    """The quotas of a project: a number, `unlimited`, or `default` for that of the settings."""

    max_running_jobs: Annotated[str | None, _limit("Jobs that run at once; more stay queued.")] = None
    max_queued_jobs: Annotated[str | None, _limit("Jobs that are queued.")] = None
    max_jobs_per_minute: Annotated[str | None, _limit("Jobs submitted in one minute.")] = None
    max_jobs_per_day: Annotated[str | None, _limit("Jobs submitted on one day (UTC).")] = None
    max_vcpu_seconds_per_day: Annotated[str | None, _limit("vCPUs times seconds on one day (UTC).")] = None
    max_memory_mb_seconds_per_day: Annotated[str | None, _limit("Memory in MB times seconds on one day (UTC).")] = None
    max_storage_mb: Annotated[str | None, _limit("Scripts, logs and artifacts in MiB.")] = None
    max_sandboxes: Annotated[str | None, _limit("Sandboxes that have not ended.")] = None
    max_sandbox_vcpus: Annotated[str | None, _limit("vCPUs of its sandboxes together.")] = None
    max_vcpus: Annotated[str | None, _number("vCPUs of one job.")] = None
    max_memory_mb: Annotated[str | None, _number("Memory of one job.")] = None
    max_disk_mb: Annotated[str | None, _number("Scratch disk of one job.")] = None
    max_timeout_seconds: Annotated[str | None, _number("Timeout of one job.")] = None
    max_egress: Annotated[
        str | None,
        typer.Option(metavar="none|packages|open|HOST,…|default", help="Widest egress policy.", show_default=False),
    ] = None
    keep_jobs_days: Annotated[
        str | None, _number("Days that ended jobs are kept, if shorter than by the settings.")
    ] = None

    def changes(self) -> dict[str, Any]:
        """Return the given quotas by their names, as the API takes them. Raises InvalidOption."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: value if name == "max_egress" else _value(name, value) for name, value in given.items()} | {
            name: None for name, value in given.items() if value == _DEFAULT
        }


def _value(name: str, text: str) -> int | float | str | None:
    if text in (_DEFAULT, _UNLIMITED):
        return None if text == _DEFAULT else text
    fractions = name in ("max_timeout_seconds", "keep_jobs_days")
    try:
        return float(text) if fractions else int(text)
    except ValueError:
        option = f"--{name.replace('_', '-')}"
        raise InvalidOption(
            f"{option} takes a number, {_UNLIMITED} or {_DEFAULT}, not {text[:40]!r}", option=option
        ) from None


def print_quotas(shown: dict[str, Any]) -> None:
    """Print the limits of a project, and which of them were set for it."""
    from belljar.model.quotas import CountedQuota

    rows, counted = [], {quota.value for quota in CountedQuota}
    for name, limit in shown["limits"].items():
        origin = "" if shown["quotas"][name] is None else "of the project"
        unset = "unlimited" if name in counted else "as in the settings"
        rows.append((name, unset if limit is None else f"{limit:g}" if isinstance(limit, float) else limit, origin))
    print_table(("QUOTA", "LIMIT", ""), rows)
