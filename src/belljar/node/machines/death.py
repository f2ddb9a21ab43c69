"""Why a hypervisor's process ended, the same rules for every hypervisor."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from belljar.node.machines.host.oom import OomReport
from belljar.node.machines.protocol import Death, DeathCause

_PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]{1,200})")
_SIGNALS = {
    signal.SIGSYS: "it made a system call that its seccomp filter forbids",
    signal.SIGABRT: "it aborted",
    signal.SIGSEGV: "it crashed",
    signal.SIGBUS: "it had a bus error: the host has no room left for its files or memory",
    signal.SIGILL: "it crashed on an instruction that this processor does not know",
    signal.SIGFPE: "it crashed in arithmetic",
    signal.SIGTRAP: "it aborted",
    signal.SIGXFSZ: "it exceeded its file size limit",
    signal.SIGXCPU: "it exceeded its processor time limit",
}
#: How programs report that the host is short of something.
_HOST_SHORTAGE = re.compile(
    r"Cannot allocate memory|No space left|Too many open files|Resource temporarily unavailable|Out of memory"
    r"|\bos error (11|12|16|23|24|28)\b|\b(ENOMEM|ENOSPC|EMFILE|ENFILE|EAGAIN|EBUSY)\b",
    re.I,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessExit:
    """Everything known about a hypervisor process that ended by itself."""

    #: Its name in messages, such as QEMU.
    program: str
    #: Its exit code as its parent sees it.
    code: int
    #: The guest's serial console.
    console: bytes | bytearray
    #: What its output is searched for signs of a host shortage in.
    output: str
    #: The last error in its output; empty when there is none.
    last_error: str
    #: Adds to an error what an operator can do about it.
    with_advice: Callable[[str], str]
    #: Whether the hypervisor reported a panic of the guest's kernel.
    panic_reported: bool = False
    #: How the guest ended its machine, for code 0: `reset`, `guest-shutdown`, …
    guest_exit: str = "reset"
    #: A cause that the driver recognised in the output; only a panic comes before it.
    recognised: Death | None = None
    #: Whether its output says that a snapshot could not be restored.
    snapshot_failed: bool = False
    #: Meanings of the program's own exit codes.
    codes: Mapping[int, str] | None = None
    #: What the machine's cgroup says about kills for want of memory; None when that is unknown.
    oom: OomReport | None = None


def classify_exit(ended: ProcessExit) -> Death:
    """Return the cause and message of a death, from the console, the driver's findings and the exit code, in order."""
    if (death := panic_death(ended.console, reported=ended.panic_reported)) is not None:
        return death
    if ended.recognised is not None:
        return ended.recognised
    if ended.code == 0:
        return Death(cause=DeathCause.GUEST_EXIT, message=f"the guest ended its machine ({ended.guest_exit})")
    if (death := kill_death(ended.program, ended.code, ended.oom)) is not None:
        return death
    cause = DeathCause.HYPERVISOR
    if is_host_shortage(ended.output):
        cause = DeathCause.HOST
    elif ended.snapshot_failed:
        cause = DeathCause.SNAPSHOT
    reason = (ended.codes or {}).get(ended.code) or describe_exit_code(ended.code)
    detail = ended.with_advice(ended.last_error) if ended.last_error else ""
    return Death(cause=cause, message=f"{ended.program} failed: {reason}{': ' if detail else ''}{detail}")


def signal_from_exit_code(code: int) -> signal.Signals | None:
    """Return the signal that ended the process: its parent sees -N; a shell and bubblewrap return 128 + N."""
    try:
        return signal.Signals(-code if code < 0 else code - 128)
    except ValueError:
        return None


def describe_exit_code(code: int) -> str:
    """Return what an exit code means, with the signal's name if one ended the process."""
    number = signal_from_exit_code(code)
    if number is None:
        return f"it ended with code {code}"
    return f"{_SIGNALS.get(number, 'a signal ended it')} ({number.name})"


def kill_death(program: str, code: int, oom: OomReport | None = None) -> Death | None:
    """Return the death of a process that SIGKILL or SIGTERM ended; None for any other code."""
    number = signal_from_exit_code(code)
    if number not in (signal.SIGKILL, signal.SIGTERM):
        return None
    if number is signal.SIGKILL and oom is not None and oom.killed:
        return _oom_death(program, oom)
    may_be_oom = number is signal.SIGKILL and oom is None
    by = "an operator or the host's out-of-memory killer" if may_be_oom else "an operator or another program"
    return Death(cause=DeathCause.KILLED, message=f"{program} was killed from outside ({number.name}): by {by}")


def _oom_death(program: str, oom: OomReport) -> Death:
    killer = f"{program} was killed by the kernel's out-of-memory killer"
    if oom.over_limit:
        limit = "its memory limit" if oom.limit_mb is None else f"its memory limit of {oom.limit_mb} MB"
        return Death(cause=DeathCause.KILLED, message=f"{killer}: it exceeded {limit}")
    advice = "run fewer jobs at once, or add memory"
    return Death(cause=DeathCause.HOST, message=f"{killer}: the host ran out of memory; {advice}")


def panic_death(console: bytes | bytearray, *, reported: bool = False) -> Death | None:
    """Return the death of a guest whose kernel panicked, by its console or as `reported`; None if it did not."""
    match = _PANIC.search(console)
    if match is None and not reported:
        return None
    reason = match[1].decode(errors="replace") if match else "no reason given"
    return Death(cause=DeathCause.GUEST_PANIC, message=f"the guest's kernel panicked: {reason}")


def is_host_shortage(text: str) -> bool:
    """Return whether a program's error says that the host is short of something."""
    return _HOST_SHORTAGE.search(text) is not None
