"""Checks a job's egress against its project's limit: the project's quota, else a setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from belljar.model.egress import Egress, first_denied, parse_egress
from belljar.model.errors import InvalidDependencies, InvalidOption
from belljar.model.quotas import NO_LIMITS, QuotaLimits
from belljar.packages.registries import package_destinations
from belljar.settings import Settings
from belljar.settings.network import NetworkSettings


@dataclass(frozen=True, slots=True)
class EgressLimit:
    """The widest policy of a project, and the setting or quota that it comes from."""

    egress: Egress
    origin: str


def check_egress(requested: str | Sequence[str], limit: EgressLimit, settings: Settings) -> None:
    """Raise InvalidOption when the policy exceeds the limit, naming the first destination over it."""
    denied = first_denied(parse_egress(requested), limit.egress, package_destinations(settings))
    if denied is not None:
        raise InvalidOption(
            f"egress {denied} exceeds the project's limit {limit.egress} ({limit.origin})",
            option="egress",
            limit=limit.egress.value,
        )


def check_packages(origin: str, limit: EgressLimit, settings: Settings) -> None:
    """Raise InvalidDependencies when the project's limit does not allow packages. `origin` is what declares them."""
    if first_denied(parse_egress("packages"), limit.egress, package_destinations(settings)) is not None:
        raise InvalidDependencies(
            f"{origin} declares packages, and the project's egress limit is {limit.egress} ({limit.origin}); put them "
            "into the script, or use an image that has them"
        )


def egress_limit_of(project: str, settings: NetworkSettings, limits: QuotaLimits = NO_LIMITS) -> EgressLimit:
    """Return the project's limit: its quota, else a setting. Raises InvalidOption for an invalid setting."""
    if limits.max_egress is not None:
        return EgressLimit(parse_egress(limits.max_egress), "quota max_egress")
    name = "project_max_egress" if project in settings.project_max_egress else "max_egress"
    try:
        egress = parse_egress(settings.project_max_egress.get(project, settings.max_egress))
    except ValueError as error:
        raise InvalidOption(f"invalid setting max_egress or project_max_egress: {error}", option="max_egress") from None
    return EgressLimit(egress, f"setting {name}")
