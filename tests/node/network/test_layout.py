"""The layout of slots: its checks, and its transfer to the rootless helper."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from belljar.model.errors import NoNetwork
from belljar.node.network.layout import HostNetworks, build_layout, layout_from_json, layout_to_json
from belljar.settings import Settings

HOST = HostNetworks(
    addresses=(IPv4Address("198.51.100.7"),),
    connected=(IPv4Network("198.51.100.0/24"),),
    routed=(IPv4Network("198.51.100.0/24"), IPv4Network("10.0.0.0/8")),
    mtu=1400,
)


def test_a_layout_is_unchanged_by_its_json_form() -> None:
    settings = Settings(refused_networks=(IPv4Network("192.0.2.0/24"),), network_connections=7)
    layout = build_layout(settings, HOST)
    assert layout_from_json(json.loads(json.dumps(layout_to_json(layout)))) == layout
    assert layout.mtu == 1400 and IPv4Network("198.51.100.0/24") in layout.blocked


def test_slots_differ_for_their_machines_only_in_the_namespace() -> None:
    layout = build_layout(Settings(), HOST)
    first, second = (layout.network_slot(Path(f"/run/netns/{number}")) for number in range(2))
    assert first.namespace != second.namespace
    assert (first.guest_address, first.gateway, first.mtu) == (second.guest_address, second.gateway, second.mtu)


def test_a_range_that_the_host_routes_elsewhere_is_refused() -> None:
    with pytest.raises(NoNetwork, match="network_range"):
        build_layout(Settings(network_range=IPv4Network("10.1.0.0/16")), HOST)
