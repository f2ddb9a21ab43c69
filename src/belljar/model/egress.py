"""What a job may reach over the network, as a value: `none`, `open`, `packages`, or a list of destinations.

Parsed strictly and normalised once, at the edge: lower case, no trailing dot, IDNA for names in other scripts, networks
in canonical form. What can never be reached (private, link-local, metadata addresses) is refused here already where it
is asked for by address; the network itself refuses it whatever was asked.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import idna

from belljar.model.blocked_networks import BLOCKED_NETWORKS

#: Most entries of a list. A filter of this size is loaded in a millisecond.
MAX_ENTRIES = 256
#: A name has at most 253 characters (RFC 1035), in other scripts fewer; with a port and the wildcard.
MAX_ENTRY_CHARACTERS = 300
WORDS = ("none", "open", "packages")

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_PORT = re.compile(r"[1-9][0-9]{0,4}\Z")
_LOOKS_LIKE_ADDRESS = re.compile(r"[0-9.]+(/.*)?\Z")


@dataclass(frozen=True, slots=True)
class Destination:
    """One entry of a list: a name, every name below one, or a network; with a port or with all."""

    #: A host's name in ASCII, without a trailing dot; None for a network.
    name: str | None = None
    #: Whether it stands for the names below `name`, and not for itself: `*.example.org`.
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
        """Whether everything that `other` allows is allowed by this one."""
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
    """A parsed policy: one of WORDS, or `list` with its destinations."""

    kind: str
    destinations: tuple[Destination, ...] = ()

    @property
    def value(self) -> str | tuple[str, ...]:
        """As it is written in a job: a word, or the normalised entries."""
        return tuple(map(str, self.destinations)) if self.kind == "list" else self.kind

    def __str__(self) -> str:
        return self.value if isinstance(self.value, str) else ", ".join(self.value)


def parse_egress(given: str | Sequence[str]) -> Egress:
    """The policy in a word, in a comma-separated string, or in a list. Raises ValueError, saying what to write."""
    if isinstance(given, str):
        if len(given) > MAX_ENTRIES * MAX_ENTRY_CHARACTERS:
            raise ValueError(f"egress has {len(given)} characters; at most {MAX_ENTRIES} entries are allowed")
        given = given.split(",")
    if len(given) > MAX_ENTRIES:
        raise ValueError(
            f"egress has {len(given)} entries; at most {MAX_ENTRIES} are allowed, use wildcards or networks"
        )
    entries = [entry.strip() for entry in given]
    words = {entry.lower() for entry in entries if entry.lower() in WORDS}
    if words:
        if len({entry.lower() for entry in entries}) > 1:
            raise ValueError(f"egress is {sorted(words)[0]} or a list of destinations, not both")
        return Egress(words.pop())
    return Egress("list", parse_destinations(entries))


def parse_destinations(entries: Iterable[str]) -> tuple[Destination, ...]:
    """The destinations without repetitions, in their order. Raises ValueError."""
    found = tuple(dict.fromkeys(parse_destination(entry) for entry in entries))
    if not found:
        raise ValueError("egress is empty; write none, open, packages, or what the job may reach")
    return found


def parse_destination(entry: str, *, private: bool = False) -> Destination:
    """HOST[:PORT], *.HOST[:PORT], ADDRESS[:PORT] or NETWORK[:PORT]. Raises ValueError.

    `private`: let private addresses and names without a domain pass, which only an operator may give.
    """
    if len(entry) > MAX_ENTRY_CHARACTERS:
        raise ValueError(f"{entry[:40]!r}… is too long for a destination")
    if entry.count(":") > 1 or entry.startswith("["):
        raise ValueError(f"{entry!r} looks like an IPv6 address; machines have IPv4 only")
    host, colon, port_text = entry.partition(":")
    port = _port(port_text, entry) if colon else None
    if _LOOKS_LIKE_ADDRESS.match(host):
        return Destination(network=_network(host, entry, private=private), port=port)
    below = host.startswith("*.")
    name = normal_name(host[2:] if below else host, entry)
    if "." not in name and not private:  # a mistyped word, or all of a top-level domain
        raise ValueError(
            f"{entry[:80]!r} is no name on the internet; write none, open, packages, or HOST.DOMAIN[:PORT]"
        )
    return Destination(name=name, below=below, port=port)


def _port(text: str, entry: str) -> int:
    if not _PORT.match(text) or int(text) > 65535:
        raise ValueError(f"{entry[:80]!r} has no valid port; write HOST:PORT with a port from 1 to 65535")
    return int(text)


def _network(text: str, entry: str, *, private: bool) -> ipaddress.IPv4Network:
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise ValueError(f"{entry[:80]!r} is no IPv4 network: {error}") from None
    for never in () if private else BLOCKED_NETWORKS:
        if network.subnet_of(never):
            raise ValueError(
                f"{entry[:80]!r} is in {never}, which no job may reach (private, local or reserved addresses)"
            )
    return network


def normal_name(text: str, entry: str) -> str:
    """A host's name in lower-case ASCII without a trailing dot. Raises ValueError, naming `entry`."""
    shown = repr(entry[:80])
    name = text[:-1] if text.endswith(".") else text
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True, transitional=False).decode()
        except idna.IDNAError as error:
            raise ValueError(f"{shown} is no host name: {error}") from None
    name = name.lower()
    labels = name.split(".")
    if "*" in name:
        raise ValueError(
            f"{shown}: a wildcard is the whole first part of a name, as in *.example.org; for all, write open"
        )
    if len(name) > 253 or not all(_LABEL.match(label) for label in labels):
        raise ValueError(f"{shown} is no host name; write HOST, *.HOST or a network, each with :PORT if you like")
    if labels[-1].isdigit():
        raise ValueError(f"{shown} is neither an IPv4 address nor a host name")
    if labels[-1] == "localhost":
        raise ValueError(f"{shown}: a job reaches its own localhost without a network, and never the host's")
    return name


def first_denied(asked: Egress, ceiling: Egress, packages: Sequence[Destination]) -> str | None:
    """What of `asked` the ceiling does not allow, for a sentence; None when all of it is within.

    `packages` is what the word `packages` stands for here.
    """
    if asked.kind == "none" or ceiling.kind == "open" or asked == ceiling:
        return None
    if asked.kind == "open" or ceiling.kind == "none":
        return str(asked) if asked.kind != "list" else str(asked.destinations[0])
    allowed = packages if ceiling.kind == "packages" else ceiling.destinations
    wanted = packages if asked.kind == "packages" else asked.destinations
    for destination in wanted:
        if not any(each.covers(destination) for each in allowed):
            return str(destination)
    return None
