"""A guest's memory, read from a process that maps a memfd as QEMU does, and writes to some of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from belljar.model.errors import MachineError
from belljar.node.frozen.manifest import PIECE_BYTES
from belljar.node.machines.qemu.guest_memory import GuestMemory

SIZE = 8 * PIECE_BYTES
#: Writes the byte 9 at each offset, tells so, and waits for the end of its input.
CHILD = """
import ctypes, mmap, sys
descriptor, flags, size = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
memory = mmap.mmap(descriptor, size, flags, mmap.PROT_READ | mmap.PROT_WRITE)
memory[0], memory[size - 1]
for at in sys.argv[4:]:
    memory[int(at)] = 9
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def guest(memory: int, *, private: bool, writes: list[int]) -> Iterator[int]:
    flags = 2 if private else 1  # MAP_PRIVATE, MAP_SHARED
    arguments = [str(memory), str(flags), str(SIZE), *map(str, writes)]
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], pass_fds=[memory], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        try:
            yield process.pid
        finally:
            process.communicate()


@pytest.fixture
def memory() -> Iterator[int]:
    """A memfd whose second and third piece have ones in it, and whose rest is a hole."""
    descriptor = os.memfd_create("belljar-test")
    os.ftruncate(descriptor, SIZE)
    os.pwrite(descriptor, b"\1" * 2 * PIECE_BYTES, PIECE_BYTES)
    yield descriptor
    os.close(descriptor)


def test_a_clone_has_its_own_pages_over_those_of_its_snapshot(memory: int) -> None:
    writes = [PIECE_BYTES + 5, PIECE_BYTES + 3 * 4096, 6 * PIECE_BYTES + 4096 * 15 + 1]
    expected = bytearray(os.pread(memory, SIZE, 0))
    for at in writes:
        expected[at] = 9
    blocks = os.fstat(memory).st_blocks
    with guest(memory, private=True, writes=writes) as pid:
        source = GuestMemory([1 << 30, pid], memory)
        everything = dict(source.pieces(changed_only=False))
        changed = dict(source.pieces(changed_only=True))
    assert os.fstat(memory).st_blocks <= blocks + 3 * 8  # the child's reads and writes alone brought pages in
    found = bytearray(SIZE)
    for index, data in everything.items():
        assert data is not None
        found[index * PIECE_BYTES : (index + 1) * PIECE_BYTES] = data
    assert found == expected
    assert {index for index, data in changed.items() if data is not None} == {1, 6}
    assert changed[1] == everything[1] and changed[2] is None


def test_a_machine_that_booted_writes_to_the_file_itself(memory: int) -> None:
    with guest(memory, private=False, writes=[5 * PIECE_BYTES]) as pid:
        found = dict(GuestMemory([pid], memory).pieces(changed_only=True))
    assert found[5] == b"\x09" + bytes(PIECE_BYTES - 1)
    assert found[1] == b"\1" * PIECE_BYTES


def test_a_process_without_the_memory_is_an_error(memory: int) -> None:
    with pytest.raises(MachineError, match="has ended"):
        GuestMemory([os.getpid(), 1 << 30], memory)
