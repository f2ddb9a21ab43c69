"""Reads why a QEMU process ended from what it wrote to standard error."""

from __future__ import annotations

import re

from belljar.node.machines.death import ProcessExit, classify_exit
from belljar.node.machines.host.jail import EXIT_CODES, with_advice
from belljar.node.machines.host.oom import OomReport
from belljar.node.machines.protocol import Death

#: QEMU's messages when it cannot restore a snapshot's state (its migration/savevm.c, migration.c).
_NOT_RESTORED = re.compile(r"load of migration failed|savevm|[Mm]igration stream|Not a migration")
#: Lines that say nothing about an end: warnings, such as about features that the emulator lacks, and the registers that
#: follow an error of KVM (its target/i386/cpu-dump.c).
_NOISE = re.compile(
    r"\b(warning|info): |-(WARNING|INFO|Message) \*\*: |^\*\*$"
    r"|^([RE][A-Z0-9]{1,3}|[A-Z][A-Z0-9]{0,3}) ?=[0-9a-f]{4}|^(CR0|DR0|EFER|CCS|FCW|XMM\d\d|FPR\d|Code)=",
)
#: Lines that name an error; others may only precede it.
_ERROR = re.compile(r"assert|bail out|error|fail|cannot|can't|could not|unable|invalid|denied|not ", re.I)


def death_from_exit(
    code: int,
    console: bytes | bytearray,
    stderr: str,
    *,
    panicked: bool,
    shutdown_reason: str | None,
    oom: OomReport | None,
) -> Death:
    """Return the death for an exit code as the parent sees it, the guest's console, and QEMU's own messages."""
    return classify_exit(
        ProcessExit(
            program="QEMU",
            code=code,
            console=console,
            output=stderr,
            last_error=last_error(stderr),
            with_advice=with_advice,
            panic_reported=panicked,
            guest_exit=shutdown_reason or "powered off",
            snapshot_failed=_NOT_RESTORED.search(stderr) is not None,
            codes=EXIT_CODES,
            oom=oom,
        )
    )


def last_error(stderr: str) -> str:
    """Return the last error in the output, else its last line that is not noise; empty when there is neither."""
    lines = [line.strip() for line in stderr.splitlines()]
    messages = [line for line in lines if line and not _NOISE.search(line)]
    errors = [line for line in messages if _ERROR.search(line)]
    return (errors or messages or [""])[-1][:500]
