"""Firecracker's configuration file, checked against its official description where that is available."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from belljar.node.machines.firecracker.bodies import body
from belljar.node.machines.firecracker.clone import load_request
from belljar.node.machines.firecracker.configuration import configuration
from belljar.node.machines.protocol import MachineSpec, NetworkSlot, Shape
from node.machines.firecracker.conftest import TinyImages
from support.firecracker.building import official_description
from support.paths import TESTS

SLOT = NetworkSlot(
    namespace=Path("/run/netns/one"),
    tap="tap0",
    guest_mac="06:00:ac:1e:00:02",
    guest_address="172.30.0.2/30",
    gateway="172.30.0.1",
    nameservers=(),
    mtu=1400,
)
FULL = Shape(
    vcpus=2,
    memory_mb=512,
    disk_mb=64,
    network=True,
    disk_mb_per_second=10,
    disk_iops=200,
    network_mbit_per_second=8,
)


def _spec(tiny: TinyImages, shape: Shape, slot: NetworkSlot | None = None) -> MachineSpec:
    return MachineSpec(image=tiny.image(), shape=shape, script_disk=Path("/nowhere"), slot=slot)


def test_disks_come_in_the_order_that_the_guest_counts_them(tiny: TinyImages) -> None:
    config = configuration(_spec(tiny, FULL, SLOT)).file()
    assert [(drive["drive_id"], drive["is_read_only"]) for drive in config["drives"]] == [
        ("root", True),
        ("script", True),
        ("scratch", False),
    ]
    assert len(configuration(_spec(tiny, Shape(vcpus=1, memory_mb=64))).file()["drives"]) == 2


def test_rates_are_bytes_and_operations_per_second(tiny: TinyImages) -> None:
    config = configuration(_spec(tiny, FULL, SLOT)).file()
    expected = {"bandwidth": {"size": 10 << 20, "refill_time": 1000}, "ops": {"size": 200, "refill_time": 1000}}
    assert [drive["rate_limiter"] for drive in config["drives"]] == [expected] * 3
    (interface,) = config["network-interfaces"]
    assert interface["rx_rate_limiter"] == {"bandwidth": {"size": 1_000_000, "refill_time": 1000}}
    assert interface["tx_rate_limiter"] == interface["rx_rate_limiter"]
    # The agent sets the MTU: the device's value would be the snapshot source's in every clone.
    assert interface["host_dev_name"] == "tap0" and "mtu" not in interface


def test_without_limits_there_is_no_rate_limiter(tiny: TinyImages) -> None:
    assert "rate_limiter" not in json.dumps(configuration(_spec(tiny, Shape(vcpus=1, memory_mb=64))).file())


def test_paths_are_names_in_the_machines_own_folder(tiny: TinyImages) -> None:
    config = configuration(_spec(tiny, FULL, SLOT)).file()
    paths = [drive["path_on_host"] for drive in config["drives"]]
    paths += [
        config["boot-source"]["kernel_image_path"],
        config["boot-source"]["initrd_path"],
        config["vsock"]["uds_path"],
    ]
    assert not [path for path in paths if "/" in path]


def test_the_kernel_may_load_modules_and_resets_in_the_way_that_firecracker_sees(tiny: TinyImages) -> None:
    options = configuration(_spec(tiny, FULL)).boot_source.boot_args.split()
    assert "nomodule" not in options and {"reboot=k", "panic=-1"} <= set(options)
    assert "pci=off" not in options  # Firecracker adds it


def test_the_whole_of_it_is_what_the_official_description_says(tiny: TinyImages, tmp_path: Path) -> None:
    path = official_description()
    if path is None:
        pytest.skip("Firecracker's API description is not at hand; name it in BELLJAR_FIRECRACKER_DESCRIPTION")
    description = yaml.safe_load(path.read_text())
    sys.path.insert(0, str(TESTS / "support/firecracker/fake"))
    try:
        from description import mismatch
    finally:
        sys.path.pop(0)
    config = configuration(_spec(tiny, FULL, SLOT)).file()
    assert mismatch(description, {"$ref": "#/definitions/FullVmConfiguration"}, config, "config") is None
    for name in ("state", "memory"):
        (tmp_path / name).touch()
    (tmp_path / "frozen.json").write_text(json.dumps({"format": 1, "tap": "other0"}))
    load = body(load_request(tmp_path, _spec(tiny, FULL, SLOT)))
    assert mismatch(description, {"$ref": "#/definitions/SnapshotLoadParams"}, load, "load") is None
    assert load["network_overrides"] == [{"iface_id": "eth0", "host_dev_name": "tap0"}]
    (tmp_path / "frozen.json").write_text(json.dumps({"format": 1, "tap": "tap0"}))
    assert body(load_request(tmp_path, _spec(tiny, FULL, SLOT)))["network_overrides"] == []
