"""The host names of ports: `{port}-{sandbox_id}.{domain}`. Anything else below the domain is nobody's.

The sandbox's id is written `sb-01m8…` in URLs that belljar makes: OpenSSL matches no wildcard certificate with a name
that has an underscore. The id as it is, and without `sb_`, is accepted, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

_NAME = re.compile(r"([1-9][0-9]{0,4})-(?:sb[_-])?([0-9a-hjkmnp-tv-z]{26})\Z")
_PORT = re.compile(r":[0-9]{0,5}\Z")
_MAX_HOST_CHARACTERS = 255
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class PortHost:
    """A port of a sandbox that a host name names. There may be no such sandbox."""

    sandbox_id: str
    port: int


class SandboxDomain:
    """The domain below which every port of a sandbox has a host name."""

    def __init__(self, domain: str, public_url: str | None) -> None:
        """`public_url` is the address of the API for browsers; its scheme and port are those of the ports, too."""
        self._suffix = f".{domain}"
        self._public = None if public_url is None else urlsplit(public_url)

    def has(self, host: str) -> bool:
        """Return whether a header `Host` names something below the domain, whatever it is."""
        return _PORT.sub("", host).lower().rstrip(".").endswith(self._suffix)

    def parse(self, host: str) -> PortHost | None:
        """Return the port that a header `Host` names exactly; None for another name."""
        if len(host) > _MAX_HOST_CHARACTERS or not host.isascii():
            return None
        name = _PORT.sub("", host).lower()
        match = _NAME.match(name.removesuffix(self._suffix)) if name.endswith(self._suffix) else None
        if match is None or int(match[1]) > _MAX_PORT:
            return None
        return PortHost(f"sb_{match[2].upper()}", int(match[1]))

    def url(self, sandbox_id: str, port: int, requested: str) -> str:
        """Return the URL of a port, for a caller that sent a request to the URL `requested`."""
        base = self._public or urlsplit(requested)
        try:
            number = "" if base.port is None else f":{base.port}"
        except ValueError:  # of a caller's invalid `Host`
            number = ""
        return f"{base.scheme}://{port}-{sandbox_id.lower().replace('_', '-')}{self._suffix}{number}/"
