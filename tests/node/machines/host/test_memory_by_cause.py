"""The memory of real processes by cause: everything is counted once, and each kind under its name."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from belljar.node.machines.host.memory_by_cause import MemoryCause, memory_by_cause
from belljar.node.machines.host.usage import resident_mb

GUEST_MB = 64
#: A process with 64 MiB of guest memory in a memfd, of which 8 are written and 16 read; 4 MiB of code; 6 of heap.
PROCESS = """
import mmap, os, sys, threading
memory = os.memfd_create("belljar-guest")
os.ftruncate(memory, 64 << 20)
for at in range(0, 64 << 20, 1 << 20):
    os.pwrite(memory, b"x" * (1 << 20), at)
guest = mmap.mmap(memory, 64 << 20, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
for at in range(0, 8 << 20, 4096):
    guest[at] = 1
read = sum(guest[at] for at in range(8 << 20, 24 << 20, 4096))
private, everything = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
code = mmap.mmap(-1, 16 << 20, flags=private, prot=everything)
code[: 4 << 20] = b"c" * (4 << 20)
heap = mmap.mmap(-1, 6 << 20, flags=private)
heap[:] = b"h" * (6 << 20)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def pid() -> Iterator[int]:
    command = [sys.executable, "-c", PROCESS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.stdin.close()
        process.wait(60)


def test_each_kind_of_memory_is_under_its_cause_and_nothing_is_lost(pid: int) -> None:
    found = memory_by_cause([pid], GUEST_MB)
    assert found[MemoryCause.GUEST_WRITTEN] == pytest.approx(8, abs=0.5)
    assert 15.5 <= found[MemoryCause.GUEST_SHARED] <= 56.5  # the kernel maps pages around those that are read
    assert 4 <= found[MemoryCause.TRANSLATIONS] <= 6.5  # a huge page may round it up
    assert 5 <= found[MemoryCause.HEAP] < 40
    assert found[MemoryCause.PROGRAM_SHARED] > 0 and found[MemoryCause.PROGRAM_WRITTEN] > 0
    assert found[MemoryCause.STACKS] > 0 and found[MemoryCause.JAIL] == 0
    assert sum(found.values()) == pytest.approx(resident_mb([pid]), abs=0.5)


def test_a_process_without_a_guest_is_the_jails_and_one_that_ended_is_nothing(pid: int) -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        found = memory_by_cause([pid, other.pid], GUEST_MB)
        assert 0 < found[MemoryCause.JAIL] < 5
        other.kill()
        other.wait()
    assert set(memory_by_cause([other.pid], GUEST_MB).values()) == {0.0}


def test_memory_of_a_guest_without_a_file_is_known_by_its_size() -> None:
    with mmap.mmap(-1, GUEST_MB << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as guest:
        guest[: 8 << 20] = b"g" * (8 << 20)
        found = memory_by_cause([os.getpid()], GUEST_MB)
    assert found[MemoryCause.GUEST_WRITTEN] >= 8
