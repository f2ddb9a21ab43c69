"""The egress limit of a project and the destinations of `packages`, both from the settings."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from belljar.model.egress import Destination, Egress, first_denied, parse_destination, parse_destinations, parse_egress
from belljar.model.errors import InvalidDependencies, InvalidOption
from belljar.settings import Settings

_DEFAULT_PORTS = {"http": 80, "https": 443}


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


def egress_limit_of(project: str, settings: Settings) -> Egress:
    """Return the project's limit, by default that of all projects. Raises InvalidOption for an invalid setting."""
    try:
        return parse_egress(settings.project_max_egress.get(project, settings.max_egress))
    except ValueError as error:
        raise InvalidOption(f"invalid setting max_egress or project_max_egress: {error}", option="max_egress") from None


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
