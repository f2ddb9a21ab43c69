"""Checks a job's egress against its project's limit, which is a setting."""

from __future__ import annotations

from collections.abc import Sequence

from belljar.model.egress import Egress, first_denied, parse_egress
from belljar.model.errors import InvalidDependencies, InvalidOption
from belljar.packages.registries import package_destinations
from belljar.settings import Settings
from belljar.settings.network import NetworkSettings


def check_egress(asked: str | Sequence[str], project: str, settings: Settings) -> None:
    """Raises InvalidOption when a job of this project may not have that policy, naming what is beyond the ceiling."""
    setting = "project_max_egress" if project in settings.project_max_egress else "max_egress"
    ceiling = egress_limit_of(project, settings)
    over = first_denied(parse_egress(asked), ceiling, package_destinations(settings))
    if over is not None:
        raise InvalidOption(
            f"egress {over} is more than this project may have, which is {ceiling} (the setting {setting})",
            option="egress",
            limit=ceiling.value,
        )


def check_packages(origin: str, project: str, settings: Settings) -> None:
    """Raises InvalidDependencies when nothing may be fetched for this project's scripts. `origin` asks for packages."""
    if (
        first_denied(parse_egress("packages"), egress_limit_of(project, settings), package_destinations(settings))
        is not None
    ):
        raise InvalidDependencies(
            f"{origin} asks for packages, and nothing may be fetched for this project (the settings max_egress and "
            "project_max_egress); put them into the script, or use an image that has them"
        )


def egress_limit_of(project: str, settings: NetworkSettings) -> Egress:
    """The project's own ceiling, else that of all. Raises InvalidOption when the setting is malformed."""
    try:
        return parse_egress(settings.project_max_egress.get(project, settings.max_egress))
    except ValueError as error:
        raise InvalidOption(f"a ceiling of egress in the settings is wrong: {error}", option="max_egress") from None
