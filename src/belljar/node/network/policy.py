"""What one machine may reach, resolved to names, networks and ports. Whose wish it is, is not known here."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network


@dataclass(frozen=True, slots=True)
class NameRule:
    """A name, or the names below it, on one port or on all."""

    name: str
    below: bool = False
    port: int | None = None

    def matches(self, name: str) -> bool:
        """Whether this rule is about `name`, which is in lower case and has no trailing dot."""
        return name.endswith("." + self.name) if self.below else name == self.name


@dataclass(frozen=True, slots=True)
class NetworkRule:
    network: IPv4Network
    port: int | None = None

    def element(self) -> str:
        """As an element of a set of nftables."""
        return str(self.network) if self.port is None else f"{self.network} . {self.port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """Everything (`open`), or exactly these. What is never reached is not reached by either, except `excepted`."""

    open: bool = False
    names: tuple[NameRule, ...] = ()
    networks: tuple[NetworkRule, ...] = ()
    #: Private destinations that the operator opened for this policy, as far as it allows them.
    excepted: tuple[NetworkRule, ...] = ()

    def rules_for(self, name: str) -> list[NameRule]:
        """The rules that allow a name."""
        return [rule for rule in self.names if rule.matches(name)]
