"""Settings of sandboxes."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from belljar.settings.area import Area

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_MAX_DOMAIN_CHARACTERS = 200


def _domain(given: str | None) -> str | None:
    if given is None:
        return None
    domain = given.lower()
    labels = domain.split(".")
    if len(domain) > _MAX_DOMAIN_CHARACTERS or not all(map(_LABEL.match, labels)) or labels[-1].isdigit():
        raise ValueError(f"{given[:80]!r} is no domain such as sandboxes.example: no scheme, port, * or address")
    return domain


class SandboxSettings(Area):
    """Sandboxes: how long they live, and how many a project may have."""

    default_sandbox_lifetime_seconds: float = Field(
        3600, gt=0, description="Lifetime of a sandbox that requests none; it ends then, whatever runs in it."
    )
    max_sandbox_lifetime_seconds: float = Field(
        86_400, gt=0, description="Maximum lifetime of a sandbox, from its creation, extensions included."
    )
    default_sandbox_idle_seconds: float | None = Field(
        None, gt=0, description="Idle limit of a sandbox that requests none; default: only its lifetime ends it."
    )
    max_sandboxes_per_project: int = Field(
        100, ge=0, description="Maximum sandboxes of a project that have not ended, paused ones included."
    )
    max_snapshots_per_project: int = Field(50, ge=0, description="Maximum snapshots of sandboxes of a project.")
    keep_paused_sandboxes_days: float = Field(
        7, ge=0, description="Retention of paused sandboxes, in days; then they end. 0 keeps them for ever."
    )
    keep_snapshots_days: float = Field(
        30, ge=0, description="Retention of snapshots of sandboxes, in days; 0 keeps them for ever."
    )
    sandbox_domain: Annotated[str | None, AfterValidator(_domain)] = Field(
        None,
        description="Domain of the host names of ports, `{port}-{sandbox_id}.DOMAIN`; its wildcard record leads here.",
    )
    keep_ended_sandboxes_days: float = Field(
        7, ge=0, description="Retention of the records of ended sandboxes, in days; 0 keeps them for ever."
    )
