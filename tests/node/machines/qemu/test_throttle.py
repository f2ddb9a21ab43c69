"""Rate limits of QEMU's disks: the arguments, and a QEMU that accepts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar.images.catalog import Images
from belljar.node.machines.protocol import Shape
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.node.machines.qemu.throttle import throttle_filter, throttle_group
from belljar.settings import Settings
from support.firecracker.api_requests import opened, run, spec_of


def test_without_a_limit_there_is_no_group() -> None:
    assert throttle_group(Shape(vcpus=1, memory_mb=64), "root") == ([], "root")


def test_rates_are_bytes_and_operations_a_second_of_each_disks_own_group() -> None:
    shape = Shape(vcpus=1, memory_mb=64, disk_mb_per_second=1.5, disk_iops=20)
    assert throttle_group(shape, "scratch") == (
        ["-object", f"throttle-group,id=limit-scratch,x-bps-total={3 << 19},x-iops-total=20"],
        "scratch-file",
    )
    assert throttle_filter("scratch", "scratch-file").endswith("throttle-group=limit-scratch,file=scratch-file")


@pytest.mark.vm
async def test_a_machine_with_limits_boots_and_writes(data_dir: Path) -> None:
    hypervisor = QemuHypervisor(Settings(data_dir=data_dir), "tcg")
    spec = spec_of(Images(data_dir).get("shell"), disk_mb=64, disk_mb_per_second=50, disk_iops=500)
    async with hypervisor.machine(spec) as machine:
        connection = await opened(machine)
        script = "dd if=/dev/zero of=/tmp/x bs=1M count=20 conv=fsync 2>/dev/null && stat -c %s /tmp/x"
        assert (await run(connection, script)).strip() == str(20 << 20)
