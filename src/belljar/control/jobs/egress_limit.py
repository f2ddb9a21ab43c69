"""The most that a project's jobs may reach, and what the word `packages` stands for: both are settings."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from belljar.model.egress import Destination, Egress, first_denied, parse_destination, parse_destinations, parse_egress
from belljar.model.errors import InvalidDependencies, InvalidOption
from belljar.settings import Settings

_DEFAULT_PORTS = {"http": 80, "https": 443}


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


def egress_limit_of(project: str, settings: Settings) -> Egress:
    """The project's own ceiling, else that of all. Raises InvalidOption when the setting is malformed."""
    try:
        return parse_egress(settings.project_max_egress.get(project, settings.max_egress))
    except ValueError as error:
        raise InvalidOption(f"a ceiling of egress in the settings is wrong: {error}", option="max_egress") from None


def package_destinations(settings: Settings) -> tuple[Destination, ...]:
    """What jobs under `packages` reach: the hosts of the setting and those of the mirrors' URLs.

    Raises InvalidOption when a setting is malformed.
    """
    try:
        found = list(parse_destinations(settings.package_hosts)) if settings.package_hosts else []
        for url in (settings.package_pypi_url, settings.package_npm_url):
            if url is not None:
                found.append(_mirror(url))
    except ValueError as error:
        raise InvalidOption(f"a setting about package mirrors is wrong: {error}", option="package_hosts") from None
    return tuple(dict.fromkeys(found))


def _mirror(url: str) -> Destination:
    parts = urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError(f"{url[:80]!r} is no http or https URL")
    if parts.username is not None:
        raise ValueError("the URL of a package mirror holds a password, which every job could read")
    return parse_destination(f"{parts.hostname}:{parts.port or _DEFAULT_PORTS[parts.scheme]}", private=True)


def package_environment(settings: Settings) -> dict[str, str]:
    """The variables that point pip and npm to the mirrors, where the settings name some."""
    found = {}
    if settings.package_pypi_url is not None:
        found["PIP_INDEX_URL"] = settings.package_pypi_url
        parts = urlsplit(settings.package_pypi_url)
        if parts.scheme == "http":  # which pip refuses otherwise; the operator has chosen it
            found["PIP_TRUSTED_HOST"] = parts.netloc
    if settings.package_npm_url is not None:
        found["npm_config_registry"] = settings.package_npm_url
    return found
