"""Addresses that no job reaches, whatever it asks for."""

from __future__ import annotations

from ipaddress import IPv4Network

#: IANA's registry of special-purpose addresses, less those that are only for documentation. The metadata services of
#: the clouds are among the link-local ones.
BLOCKED_NETWORKS = tuple(
    IPv4Network(text)
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
