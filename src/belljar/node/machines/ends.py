"""What a hypervisor's exit code says, the same for every hypervisor."""

from __future__ import annotations

import re
import signal

from belljar.node.machines.protocol import Death, DeathCause

_PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]{1,200})")
_SIGNALS = {
    signal.SIGSYS: "it made a system call that its seccomp filter forbids",
    signal.SIGABRT: "it gave up by itself",
    signal.SIGSEGV: "it crashed",
    signal.SIGBUS: "it had a bus error: the host has no room left for its files or memory",
    signal.SIGILL: "it crashed on an instruction that this processor does not know",
    signal.SIGFPE: "it crashed in arithmetic",
    signal.SIGTRAP: "it gave up by itself",
    signal.SIGXFSZ: "it wrote more than its files may hold",
    signal.SIGXCPU: "it used more processor time than it may",
}
#: A host that has too little of something, in the words of whatever failed.
_HOST = re.compile(
    r"Cannot allocate memory|No space left|Too many open files|Resource temporarily unavailable|Out of memory"
    r"|\bos error (11|12|16|23|24|28)\b|\b(ENOMEM|ENOSPC|EMFILE|ENFILE|EAGAIN|EBUSY)\b",
    re.I,
)


def signal_of(code: int) -> signal.Signals | None:
    """Return the signal that ended the process: its parent sees -N, bubblewrap and a shell say 128 + N."""
    try:
        return signal.Signals(-code if code < 0 else code - 128)
    except ValueError:
        return None


def reason_of(code: int) -> str:
    """Return what an exit code means, in words, with the signal's name if one ended the process."""
    number = signal_of(code)
    if number is None:
        return f"it ended with code {code}"
    return f"{_SIGNALS.get(number, 'a signal ended it')} ({number.name})"


def killed(program: str, code: int) -> Death | None:
    """Return the death of a process that somebody else ended; None for any other code."""
    number = signal_of(code)
    if number not in (signal.SIGKILL, signal.SIGTERM):
        return None
    return Death(
        cause=DeathCause.KILLED,
        message=f"{program} was killed from outside ({number.name}): by hand, or by the host's out-of-memory killer",
    )


def panicked(console: bytes | bytearray, *, otherwise: bool = False) -> Death | None:
    """Return the death of a guest whose kernel panicked, as its console says; `otherwise`: something else says so."""
    found = _PANIC.search(console)
    if found is None and not otherwise:
        return None
    words = found[1].decode(errors="replace") if found else "no reason given"
    return Death(cause=DeathCause.GUEST_PANIC, message=f"the guest's kernel panicked: {words}")


def is_the_hosts(words: str) -> bool:
    """Return whether a program's last words say that the host has too little of something."""
    return _HOST.search(words) is not None
