"""A network namespace with a TAP device, as a slot has, and no network behind it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from belljar.node.machines.protocol import NetworkSlot


@contextmanager
def network_place(tap: str = "tap0") -> Iterator[NetworkSlot]:
    """Provide a slot in a new namespace, and remove it at the end. Skip without the `ip` command."""
    if shutil.which("ip") is None:
        pytest.skip("ip is not installed")
    name = f"belljar-test-{os.getpid()}"
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "tuntap", "add", tap, "mode", "tap")
        _ip("-n", name, "link", "set", tap, "up")
        yield NetworkSlot(
            namespace=Path("/run/netns") / name,
            tap=tap,
            guest_mac="06:00:ac:1e:00:02",
            guest_address="172.30.0.2/30",
            gateway="172.30.0.1",
            nameservers=(),
        )
    finally:
        _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=30, capture_output=True)
