"""Divides the memory of a machine's processes by what it is for. Source: proc_pid_smaps(5)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ (\S{4}) \S+ \S+ \d+ *(.*)$")
_FIELD = re.compile(r"^(\w+): +(\d+) kB$")
#: Names of files that hold a guest's memory: QEMU's memfd, and the file of Firecracker's snapshots.
_GUEST = re.compile(r"^/memfd:belljar-guest\b|/memory( \(deleted\))?$")
#: A thread's stack follows a page that nothing may touch.
_GUARD_KB = 4


class MemoryCause(StrEnum):
    """What a part of a machine's memory on the host is for."""

    GUEST_WRITTEN = "guest memory that the clone has written"
    GUEST_SHARED = "guest memory of the snapshot, shared"
    TRANSLATIONS = "translated code (software emulation)"
    HEAP = "hypervisor's heap"
    STACKS = "threads' stacks"
    PROGRAM_WRITTEN = "program and libraries, written (relocations, data)"
    PROGRAM_SHARED = "program and libraries, shared"
    JAIL = "jail's own processes"


@dataclass(frozen=True, slots=True)
class _Mapping:
    permissions: str
    name: str
    size_kb: int
    pss_kb: int
    #: Of it in pages that no file backs.
    anonymous_kb: int
    follows_guard: bool


def memory_by_cause(pids: Iterable[int], guest_mb: int) -> dict[MemoryCause, float]:
    """Return the MiB (proportional set size) of a machine's processes by cause; ended processes count zero.

    `guest_mb`: memory of the guest. Memory without a file of at least half that size is the guest's too.
    """
    totals_kb = dict.fromkeys(MemoryCause, 0)
    for pid in pids:
        mappings = list(_mappings(pid))
        is_hypervisor = any(_is_guest(mapping, guest_mb) for mapping in mappings)
        for mapping in mappings:
            for cause, size_kb in _causes(mapping, guest_mb) if is_hypervisor else [(MemoryCause.JAIL, mapping.pss_kb)]:
                totals_kb[cause] += size_kb
    return {cause: size_kb / 1024 for cause, size_kb in totals_kb.items()}


def _causes(mapping: _Mapping, guest_mb: int) -> list[tuple[MemoryCause, int]]:
    shared_kb = max(0, mapping.pss_kb - mapping.anonymous_kb)
    if _is_guest(mapping, guest_mb):
        return [(MemoryCause.GUEST_WRITTEN, mapping.pss_kb - shared_kb), (MemoryCause.GUEST_SHARED, shared_kb)]
    if mapping.name.startswith("/"):
        return [(MemoryCause.PROGRAM_WRITTEN, mapping.pss_kb - shared_kb), (MemoryCause.PROGRAM_SHARED, shared_kb)]
    if "x" in mapping.permissions and "w" in mapping.permissions:
        return [(MemoryCause.TRANSLATIONS, mapping.pss_kb)]
    if mapping.follows_guard or mapping.name.startswith("[stack"):
        return [(MemoryCause.STACKS, mapping.pss_kb)]
    return [(MemoryCause.HEAP, mapping.pss_kb)]


def _is_guest(mapping: _Mapping, guest_mb: int) -> bool:
    if mapping.name:
        return _GUEST.search(mapping.name) is not None
    return mapping.size_kb >= guest_mb * 512 and "x" not in mapping.permissions and "w" in mapping.permissions


def _mappings(pid: int) -> Iterator[_Mapping]:
    try:
        text = Path(f"/proc/{pid}/smaps").read_text()
    except OSError:
        return
    follows_guard = False
    header: tuple[str, str] | None = None
    fields: dict[str, int] = {}
    for line in [*text.splitlines(), "0-0 ---- 0 0 0"]:
        if (match := _MAPPING.match(line)) is None:
            if (value := _FIELD.match(line)) is not None:
                fields[value[1]] = int(value[2])
            continue
        if header is not None:
            permissions, name = header
            size_kb = fields.get("Size", 0)
            yield _Mapping(permissions, name, size_kb, fields.get("Pss", 0), fields.get("Anonymous", 0), follows_guard)
            follows_guard = permissions == "---p" and size_kb == _GUARD_KB and not name
        header, fields = (match[1], match[2]), {}
