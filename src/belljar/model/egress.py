"""Egress policies: what a job may reach over the network. `none`, `open`, `packages`, or a list of destinations.

Policies are parsed strictly and normalised once, at the edge: lower case, no trailing dot, IDNA for non-ASCII names,
networks in canonical form. Addresses in BLOCKED_NETWORKS are refused here; the network blocks them under every policy.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import idna

#: Networks that no job may reach: IANA's registry of special-purpose addresses without those for documentation. The
#: metadata services of clouds are in the link-local one.
BLOCKED_NETWORKS = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)

#: Maximum entries of a list. A filter of this size is loaded in a millisecond.
MAX_ENTRIES = 256
#: A name has at most 253 characters (RFC 1035); with a port and the wildcard.
MAX_ENTRY_CHARACTERS = 300
KEYWORDS = ("none", "open", "packages")

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_PORT = re.compile(r"[1-9][0-9]{0,4}\Z")
_LOOKS_LIKE_ADDRESS = re.compile(r"[0-9.]+(/.*)?\Z")


@dataclass(frozen=True, slots=True)
class Destination:
    """One entry of a list: a host name, all names below one, or a network; with one port or all."""

    #: A host name in ASCII, without a trailing dot; None for a network.
    name: str | None = None
    #: Whether the entry is a wildcard for the names below `name`, without itself: `*.example.org`.
    below: bool = False
    network: ipaddress.IPv4Network | None = None
    port: int | None = None

    def __str__(self) -> str:
        if self.network is not None:
            text = str(self.network.network_address) if self.network.prefixlen == 32 else str(self.network)
        else:
            text = f"*.{self.name}" if self.below else f"{self.name}"
        return text if self.port is None else f"{text}:{self.port}"

    def covers(self, other: Destination) -> bool:
        """Return whether this destination allows everything that `other` allows."""
        if self.port is not None and self.port != other.port:
            return False
        if self.network is not None:
            return other.network is not None and other.network.subnet_of(self.network)
        if other.name is None or self.name is None:
            return False
        if self.below:
            return other.name.endswith("." + self.name) or (other.below and other.name == self.name)
        return not other.below and other.name == self.name


@dataclass(frozen=True, slots=True)
class Egress:
    """A parsed policy: one of KEYWORDS, or `list` with its destinations."""

    kind: str
    destinations: tuple[Destination, ...] = ()

    @property
    def value(self) -> str | tuple[str, ...]:
        """Return the policy as a job has it: a keyword, or the normalised entries."""
        return tuple(map(str, self.destinations)) if self.kind == "list" else self.kind

    def __str__(self) -> str:
        return self.value if isinstance(self.value, str) else ", ".join(self.value)


def parse_egress(value: str | Sequence[str]) -> Egress:
    """Parse a keyword, a comma-separated string or a list. Raises ValueError with what to write."""
    if isinstance(value, str):
        if len(value) > MAX_ENTRIES * MAX_ENTRY_CHARACTERS:
            raise ValueError(f"egress has {len(value)} characters; at most {MAX_ENTRIES} entries are allowed")
        value = value.split(",")
    if len(value) > MAX_ENTRIES:
        raise ValueError(
            f"egress has {len(value)} entries; at most {MAX_ENTRIES} are allowed, use wildcards or networks"
        )
    entries = [entry.strip() for entry in value]
    keywords = {entry.lower() for entry in entries if entry.lower() in KEYWORDS}
    if keywords:
        if len({entry.lower() for entry in entries}) > 1:
            raise ValueError(f"egress is {sorted(keywords)[0]} or a list of destinations, not both")
        return Egress(keywords.pop())
    return Egress("list", parse_destinations(entries))


def parse_destinations(entries: Iterable[str]) -> tuple[Destination, ...]:
    """Parse the entries, without duplicates and in their order. Raises ValueError."""
    destinations = tuple(dict.fromkeys(parse_destination(entry) for entry in entries))
    if not destinations:
        raise ValueError("egress is empty; write none, open, packages, or the destinations that the job may reach")
    return destinations


def parse_destination(entry: str, *, private: bool = False) -> Destination:
    """Parse HOST[:PORT], *.HOST[:PORT], ADDRESS[:PORT] or NETWORK[:PORT]. Raises ValueError.

    `private` allows private addresses and names without a domain, for entries of the operator.
    """
    if len(entry) > MAX_ENTRY_CHARACTERS:
        raise ValueError(f"{entry[:40]!r}… is too long for a destination; maximum: {MAX_ENTRY_CHARACTERS} characters")
    if "://" in entry:
        raise ValueError(f"{entry[:80]!r} is a URL; write HOST or HOST:PORT")
    if entry.count(":") > 1 or entry.startswith("["):
        raise ValueError(f"{entry!r} looks like an IPv6 address; machines have IPv4 only")
    host, colon, port_text = entry.partition(":")
    port = _port(port_text, entry) if colon else None
    if _LOOKS_LIKE_ADDRESS.match(host):
        return Destination(network=_network(host, entry, private=private), port=port)
    below = host.startswith("*.")
    name = normalize_host_name(host[2:] if below else host, entry)
    if "." not in name and not private:  # a mistyped keyword, or a top-level domain
        raise ValueError(f"{entry[:80]!r} has no domain; write none, open, packages, or HOST.DOMAIN[:PORT]")
    return Destination(name=name, below=below, port=port)


def _port(text: str, entry: str) -> int:
    if not _PORT.match(text) or int(text) > 65535:
        raise ValueError(f"{entry[:80]!r} has an invalid port; write HOST:PORT with a port from 1 to 65535")
    return int(text)


def _network(text: str, entry: str, *, private: bool) -> ipaddress.IPv4Network:
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise ValueError(f"{entry[:80]!r} is not an IPv4 network: {error}") from None
    for blocked in () if private else BLOCKED_NETWORKS:
        if network.subnet_of(blocked):
            raise ValueError(
                f"{entry[:80]!r} is in {blocked}, which no job may reach (private, local or reserved addresses)"
            )
    return network


def normalize_host_name(text: str, entry: str) -> str:
    """Return a host name in lower-case ASCII without a trailing dot. Raises ValueError that names `entry`."""
    shown = repr(entry[:80])
    name = text[:-1] if text.endswith(".") else text
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True, transitional=False).decode()
        except idna.IDNAError as error:
            raise ValueError(f"{shown} is an invalid host name: {error}") from None
    name = name.lower()
    labels = name.split(".")
    if "*" in name:
        raise ValueError(
            f"{shown}: a wildcard must be the whole first label, as in *.example.org; for everything, write open"
        )
    if len(name) > 253 or not all(_LABEL.match(label) for label in labels):
        raise ValueError(f"{shown} is an invalid host name; expected HOST, *.HOST or a network, optionally with :PORT")
    if labels[-1].isdigit():
        raise ValueError(f"{shown} is neither an IPv4 address nor a host name")
    if labels[-1] == "localhost":
        raise ValueError(f"{shown}: a job reaches its own localhost under every policy, and the host's under none")
    return name


def first_denied(requested: Egress, limit: Egress, packages: Sequence[Destination]) -> str | None:
    """Return the first destination of `requested` that `limit` does not allow; None when it allows all.

    `packages` are the destinations of the keyword `packages`.
    """
    if requested.kind == "none" or limit.kind == "open" or requested == limit:
        return None
    if requested.kind == "open" or limit.kind == "none":
        return str(requested) if requested.kind != "list" else str(requested.destinations[0])
    allowed = packages if limit.kind == "packages" else limit.destinations
    for destination in packages if requested.kind == "packages" else requested.destinations:
        if not any(each.covers(destination) for each in allowed):
            return str(destination)
    return None
