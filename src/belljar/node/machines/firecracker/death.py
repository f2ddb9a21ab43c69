"""Why a Firecracker process ended, in a sentence. Source: FcExitCode in Firecracker's src/vmm/src/lib.rs."""

from __future__ import annotations

import re

from belljar.node.machines.ends import is_the_hosts, killed, panicked, reason_of
from belljar.node.machines.firecracker.confinement import explain
from belljar.node.machines.protocol import Death, DeathCause

_CODES = {
    148: "it made a system call that its seccomp filter forbids",
    149: "it had a bus error: the host has no room left for its files or memory",
    150: "it crashed (SIGSEGV)",
    151: "it wrote more than its files may hold (SIGXFSZ)",
    152: "it did not accept its configuration",
    153: "it did not accept its command line",
    154: "it used more CPU time than it may (SIGXCPU)",
    157: "it crashed (SIGILL)",
}
#: Firecracker's own words that say that the accelerator failed under the guest, which it tells by exit code 0 or 1.
_FAULT = re.compile(
    r"Unexpected exit reason|VCPU Faulted|Failure during vcpu run|KVM_EXIT_INTERNAL_ERROR|emulation", re.I
)
#: What Firecracker says itself before it ends for a reason that the exit code does not tell well.
_BAD_CALL = re.compile(r"intercepting a bad syscall \((\d+)\)")
_NOTATION = re.compile(r"Error: \w+\(")
_LEAD = re.compile(r"^\S+ \[[^\]]*\] ")


def cause_of(code: int, console: bytes, words: str) -> Death:
    """From the process's exit code as its parent sees it, the guest's console, and what Firecracker said last."""
    if (death := panicked(console)) is not None:
        return death
    if (call := _BAD_CALL.search(words)) is not None:
        reason = f"it made the system call number {call[1]}, which its seccomp filter forbids"
        return Death(cause=DeathCause.HYPERVISOR, message=f"Firecracker failed: {reason}")
    if (fault := _line(words, _FAULT)) is not None:
        return Death(cause=DeathCause.HYPERVISOR, message=f"KVM could not run the guest: {fault}")
    if code == 0:
        return Death(cause=DeathCause.GUEST_EXIT, message="the guest ended its machine (reset)")
    if (death := killed("Firecracker", code)) is not None:
        return death
    # Firecracker's own codes begin above those of the signals that end it as they end anything.
    reason = _CODES.get(code) or reason_of(code)
    last = last_words(words)
    said = explain(last)
    cause = DeathCause.HOST if is_the_hosts(last) else DeathCause.HYPERVISOR
    return Death(cause=cause, message=f"Firecracker failed: {reason}{': ' if said else ''}{said}")


def last_words(words: str) -> str:
    """The last error that is told, without the time and the thread before it; else the last line.

    Both programs say the same twice: as a sentence, and in Rust's own notation (`Error: Outer(Inner(…))`).
    """
    lines = [_LEAD.sub("", line.strip()) for line in words.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error|fail|panic|cannot", line, re.I) and "exit_code" not in line]
    sentences = [line for line in errors if not _NOTATION.match(line)]
    last = (sentences or errors or lines or [""])[-1]
    return re.sub(r"^\w+ error: ", "", last).rstrip("\\ ")[:500]


def _line(words: str, pattern: re.Pattern[str]) -> str | None:
    found = next((line for line in words.splitlines() if pattern.search(line)), None)
    return None if found is None else _LEAD.sub("", found)[:300]
