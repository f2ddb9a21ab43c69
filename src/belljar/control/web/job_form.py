"""The form of the playground: from its fields to a submission, and from a job back to its fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from belljar.model.errors import InvalidOption
from belljar.model.job import Job
from belljar.model.job_options import JobRequest

#: Code with its standard input and arguments, percent-encoded.
MAX_FORM_BYTES = 4 * 1024 * 1024
#: Fields that are options of a job as they are.
_TEXTS = ("egress", "image")
_NUMBERS: Mapping[str, Callable[[str], float]] = {
    "vcpus": int,
    "memory_mb": int,
    "disk_mb": int,
    "timeout_seconds": float,
}
#: Fields with one entry a line.
_LISTS = ("args", "artifacts", "secrets")
#: Fields with one NAME=VALUE a line.
_PAIRS = ("env", "labels")
_EXAMPLE = {"egress": "none", "timeout_seconds": "", "language": "python"}


def empty_form() -> dict[str, str]:
    """Return the fields of a form that nobody has filled in."""
    names = ("code", "script_id", "stdin", *_TEXTS, *_NUMBERS, *_LISTS, *_PAIRS)
    return dict.fromkeys(names, "") | _EXAMPLE


def request_of(fields: Mapping[str, str]) -> JobRequest:
    """Return the submission that a form describes. Raises InvalidOption."""
    given = {name: value.replace("\r\n", "\n") for name, value in fields.items()}
    values: dict[str, Any] = {name: given[name].strip() for name in _TEXTS if given.get(name, "").strip()}
    if given.get("script_id"):
        values["script_id"] = given["script_id"]
    else:
        if not given.get("code", "").strip():
            raise InvalidOption("code is empty; write a script", option="code")
        values |= {"code": given["code"], "language": given.get("language", "")}
    if given.get("stdin"):
        values["stdin"] = given["stdin"]
    for name, number in _NUMBERS.items():
        if text := given.get(name, "").strip():
            values[name] = _number(name, text, number)
    values |= {name: _lines(given[name]) for name in _LISTS if given.get(name, "").strip()}
    values |= {name: dict(_pairs(name, given[name])) for name in _PAIRS if given.get(name, "").strip()}
    try:
        return JobRequest.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        reason = str(first["msg"]).removeprefix("Value error, ")
        raise InvalidOption(f"{name}: {reason}" if name else reason, option=name or "code") from None


def form_of(job: Job, code: str | None, stdin: str | None) -> dict[str, str]:
    """Return the fields that describe a job again. `code`: None for a script that is more than one text."""
    resources = job.resources
    egress = job.egress if isinstance(job.egress, str) else ", ".join(job.egress)
    return empty_form() | {
        "code": code or "",
        "script_id": "" if code is not None else job.script_id,
        "language": job.language,
        "image": job.image,
        "stdin": stdin or "",
        "args": "\n".join(job.args),
        "artifacts": "\n".join(job.artifacts),
        "env": "\n".join(f"{name}={value}" for name, value in job.env.items()),
        "labels": "\n".join(f"{name}={value}" for name, value in job.labels.items()),
        "secrets": "\n".join(use.name for use in job.secrets),
        "egress": egress,
        "vcpus": str(resources.vcpus),
        "memory_mb": str(resources.memory_mb),
        "disk_mb": "" if resources.disk_mb is None else str(resources.disk_mb),
        "timeout_seconds": f"{job.timeout_seconds:g}",
    }


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n")


def _pairs(field: str, text: str) -> list[tuple[str, str]]:
    found = []
    for line in filter(str.strip, text.split("\n")):
        name, equals, value = line.partition("=")
        if not equals:
            raise InvalidOption(f"{field}: {line[:80]!r} has no =; write NAME=VALUE on each line", option=field)
        found.append((name.strip(), value))
    return found


def _number(name: str, text: str, number: Callable[[str], float]) -> float:
    try:
        return number(text)
    except ValueError:
        raise InvalidOption(f"{name}: {text[:40]!r} is no number; enter one, or nothing", option=name) from None
