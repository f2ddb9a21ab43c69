"""An egress policy of one machine as names, networks and ports, independent of the job that it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network


@dataclass(frozen=True, slots=True)
class NameRule:
    """A host name, or with `subdomains` all names below it but not itself, on one port or on all."""

    name: str
    subdomains: bool = False
    port: int | None = None

    def matches(self, name: str) -> bool:
        """Return whether this rule covers `name`, which is in lower case and has no trailing dot."""
        return name.endswith("." + self.name) if self.subdomains else name == self.name


@dataclass(frozen=True, slots=True)
class NetworkRule:
    """A network, on one port or on all."""

    network: IPv4Network
    port: int | None = None

    def element(self) -> str:
        """Return the rule as an element of an nftables set."""
        return str(self.network) if self.port is None else f"{self.network} . {self.port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """Everything (`open`), or exactly `names` and `networks`. Blocked networks stay blocked, except `exceptions`."""

    open: bool = False
    names: tuple[NameRule, ...] = ()
    networks: tuple[NetworkRule, ...] = ()
    #: Private destinations that the operator allows under this policy.
    exceptions: tuple[NetworkRule, ...] = ()

    def rules_for(self, name: str) -> list[NameRule]:
        """Return the rules that allow a name."""
        return [rule for rule in self.names if rule.matches(name)]
