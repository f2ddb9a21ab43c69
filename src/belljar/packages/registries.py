"""The package registries of the settings: which hosts serve packages, and how installers are pointed to the mirrors."""

from __future__ import annotations

from urllib.parse import urlsplit

from belljar.model.egress import Destination, parse_destination, parse_destinations
from belljar.model.errors import InvalidOption
from belljar.settings.packages import PackageSettings

_DEFAULT_PORTS = {"http": 80, "https": 443}


def package_destinations(settings: PackageSettings) -> tuple[Destination, ...]:
    """Return the destinations that the egress `packages` stands for: package_hosts, and the hosts of the mirrors.

    Raises InvalidOption when a setting is malformed.
    """
    try:
        destinations = list(parse_destinations(settings.package_hosts)) if settings.package_hosts else []
        for url in (settings.package_pypi_url, settings.package_npm_url):
            if url is not None:
                destinations.append(_mirror_destination(url))
    except ValueError as error:
        raise InvalidOption(f"invalid setting for package mirrors: {error}", option="package_hosts") from None
    return tuple(dict.fromkeys(destinations))


def _mirror_destination(url: str) -> Destination:
    parts = urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError(f"{url[:80]!r} is not an http or https URL")
    if parts.username is not None:
        raise ValueError("the URL of a package mirror contains a password, which every job could read; remove it")
    return parse_destination(f"{parts.hostname}:{parts.port or _DEFAULT_PORTS[parts.scheme]}", private=True)


def package_environment(settings: PackageSettings) -> dict[str, str]:
    """Return the environment variables that point pip and npm to the mirrors in the settings."""
    environment = {}
    if settings.package_pypi_url is not None:
        environment["PIP_INDEX_URL"] = settings.package_pypi_url
        parts = urlsplit(settings.package_pypi_url)
        if parts.scheme == "http":  # pip refuses http otherwise; the operator has chosen it
            environment["PIP_TRUSTED_HOST"] = parts.netloc
    if settings.package_npm_url is not None:
        environment["npm_config_registry"] = settings.package_npm_url
    return environment
