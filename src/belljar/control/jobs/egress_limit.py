"""Checks a job's egress against its project's limit, which is a setting."""

from __future__ import annotations

from collections.abc import Sequence

from belljar.model.egress import Egress, first_denied, parse_egress
from belljar.model.errors import InvalidDependencies, InvalidOption
from belljar.packages.registries import package_destinations
from belljar.settings import Settings
from belljar.settings.network import NetworkSettings


def check_egress(requested: str | Sequence[str], project: str, settings: Settings) -> None:
    """Raise InvalidOption when the policy exceeds the project's limit, naming the first destination over it."""
    setting = "project_max_egress" if project in settings.project_max_egress else "max_egress"
    limit = egress_limit_of(project, settings)
    denied = first_denied(parse_egress(requested), limit, package_destinations(settings))
    if denied is not None:
        raise InvalidOption(
            f"egress {denied} exceeds the project's limit {limit} (setting {setting})",
            option="egress",
            limit=limit.value,
        )


def check_packages(origin: str, project: str, settings: Settings) -> None:
    """Raise InvalidDependencies when the project's limit does not allow packages. `origin` is what declares them."""
    limit = egress_limit_of(project, settings)
    if first_denied(parse_egress("packages"), limit, package_destinations(settings)) is not None:
        raise InvalidDependencies(
            f"{origin} declares packages, and the project's egress limit is {limit} (settings max_egress and "
            "project_max_egress); put them into the script, or use an image that has them"
        )


def egress_limit_of(project: str, settings: NetworkSettings) -> Egress:
    """Return the project's limit, by default that of all projects. Raises InvalidOption for an invalid setting."""
    try:
        return parse_egress(settings.project_max_egress.get(project, settings.max_egress))
    except ValueError as error:
        raise InvalidOption(f"invalid setting max_egress or project_max_egress: {error}", option="max_egress") from None
