"""The agent's look for a vsock device, on this machine's own kernel: one, or the module alone, or neither."""

from __future__ import annotations

import fcntl
import struct
import subprocess
from pathlib import Path

import pytest

from support.conversation import compile_with_agent

pytestmark = pytest.mark.process

_GET_LOCAL_CID = 0x7B9
_ANY = 0xFFFFFFFF


def _local_cid() -> int:
    try:
        with open("/dev/vsock", "rb") as device:
            return struct.unpack("=I", fcntl.ioctl(device, _GET_LOCAL_CID, struct.pack("=I", _ANY)))[0]
    except OSError:
        return _ANY


def test_it_listens_for_the_host_alone_if_and_only_if_the_machine_has_an_address(tmp_path: Path) -> None:
    binary = tmp_path / "listener"
    compile_with_agent(binary, Path(__file__).parent / "listener.c")
    result = subprocess.run([binary], capture_output=True, text=True, timeout=30)
    if "in use" in result.stderr:
        pytest.skip("another process listens on vsock port 1024 here")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ("none\n" if _local_cid() == _ANY else "port 1024 listening 1 host 1 job 0\n")
