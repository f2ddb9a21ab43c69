"""Settings of machines' networks."""

from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from pydantic import Field

from belljar.settings.area import Area


class NetworkSettings(Area):
    """Networks: egress limits, addresses, and the limits of one machine."""

    max_egress: str = Field(
        "open",
        description="Widest egress policy of a job: `none`, `packages`, `open`, or destinations separated by commas.",
    )
    project_max_egress: dict[str, str] = Field(
        {}, description="Widest egress policy of single projects, by name; replaces `max_egress` for them."
    )
    network_range: IPv4Network = Field(
        IPv4Network("198.19.0.0/16"),
        description="Addresses on this host for machines' networks, two for each; they must be unused otherwise.",
    )
    guest_network: IPv4Network = Field(
        IPv4Network("172.30.0.0/30"),
        description="Network inside every machine, with the addresses of the gateway and of the machine.",
    )
    network_slots: int = Field(
        4, ge=0, le=1000, description="Number of networks kept ready after the first job with a network."
    )
    nameservers: tuple[IPv4Address, ...] = Field(
        (), description="Name servers for jobs; default: those of this host, then 1.1.1.1 and 8.8.8.8."
    )
    refused_networks: tuple[IPv4Network, ...] = Field(
        (),
        description="Networks that no job may reach, besides private addresses, those of this host, and its networks.",
    )
    network_mbit: int = Field(
        1000, ge=1, le=10_000, description="Bandwidth of one machine in each direction, in megabits per second."
    )
    network_packets_per_second: int = Field(
        50_000, ge=100, description="Maximum packets that one machine may send per second."
    )
    network_connections: int = Field(1024, ge=1, le=65536, description="Maximum open connections of one machine.")
    network_connections_per_second: int = Field(
        200, ge=1, description="Maximum new connections of one machine per second."
    )
    network_flows: Literal["on", "off"] = Field(
        "on", description="Whether to count the flows of machines with a network: what each of them talks to."
    )
