"""A layout is the same in the process that stands in for the host."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from belljar.model.errors import NoNetwork
from belljar.node.network.layout import HostFacts, lay_out, layout_of, layout_words
from belljar.settings import Settings

HOST = HostFacts(
    addresses=(IPv4Address("198.51.100.7"),),
    connected=(IPv4Network("198.51.100.0/24"),),
    routed=(IPv4Network("198.51.100.0/24"), IPv4Network("10.0.0.0/8")),
    mtu=1400,
)


def test_a_layout_comes_back_from_its_words_as_it_was() -> None:
    settings = Settings(refused_networks=(IPv4Network("192.0.2.0/24"),), network_connections=7)
    layout = lay_out(settings, HOST)
    assert layout_of(json.loads(json.dumps(layout_words(layout)))) == layout
    assert layout.mtu == 1400 and IPv4Network("198.51.100.0/24") in layout.never


def test_what_a_machine_is_told_depends_on_its_slot_only_in_the_namespace() -> None:
    layout = lay_out(Settings(), HOST)
    first, second = (layout.described(Path(f"/run/netns/{number}")) for number in range(2))
    assert first.namespace != second.namespace
    assert (first.guest_address, first.gateway, first.mtu) == (second.guest_address, second.gateway, second.mtu)


def test_a_range_that_the_host_routes_elsewhere_is_refused() -> None:
    with pytest.raises(NoNetwork, match="network_range"):
        lay_out(Settings(network_range=IPv4Network("10.1.0.0/16")), HOST)
