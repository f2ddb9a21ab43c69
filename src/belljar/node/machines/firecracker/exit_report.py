"""Reads why a Firecracker process ended from its log. Source: FcExitCode in Firecracker's src/vmm/src/lib.rs."""

from __future__ import annotations

import re

from belljar.node.machines.death import ProcessExit, classify_exit
from belljar.node.machines.firecracker.confinement import with_advice
from belljar.node.machines.host.jail import EXIT_CODES
from belljar.node.machines.host.oom import OomReport
from belljar.node.machines.protocol import Death, DeathCause

_CODES = {
    148: "it made a system call that its seccomp filter forbids",
    149: "it had a bus error: the host has no room left for its files or memory",
    150: "it crashed (SIGSEGV)",
    151: "it exceeded its file size limit (SIGXFSZ)",
    152: "it did not accept its configuration",
    153: "it did not accept its command line",
    154: "it exceeded its processor time limit (SIGXCPU)",
    157: "it crashed (SIGILL)",
}
#: Firecracker's messages when the accelerator failed under the guest; its exit code is then 0 or 1.
_KVM_ERROR = re.compile(
    r"Unexpected exit reason|VCPU Faulted|Failure during vcpu run|KVM_EXIT_INTERNAL_ERROR|emulation", re.I
)
_BAD_CALL = re.compile(r"intercepting a bad syscall \((\d+)\)")
_RUST_NOTATION = re.compile(r"Error: \w+\(")
#: Time and thread before each message of the log.
_NO_ERROR = re.compile(r"^\S+ \[[^\]]*:(WARN|INFO|DEBUG|TRACE)\]")
_PREFIX = re.compile(r"^\S+ \[[^\]]*\] ")


def death_from_exit(code: int, console: bytes, output: str, oom: OomReport | None = None) -> Death:
    """Return the death for an exit code as the parent sees it, the guest's console, and Firecracker's output."""
    output = _without_noise(output)
    last = last_error(output)
    return classify_exit(
        ProcessExit(
            program="Firecracker",
            code=code,
            console=console,
            output=last,
            last_error=last,
            with_advice=with_advice,
            recognised=_recognise(output),
            codes=EXIT_CODES | _CODES,  # they begin above 128 and the common signals, so they are looked up first
            oom=oom,
        )
    )


def last_error(output: str) -> str:
    """Return the last error in the output, without time and thread; else the last line.

    Firecracker and its jailer print an error twice: as a sentence, and in Rust's notation (`Error: Outer(Inner(…))`).
    """
    lines = [_PREFIX.sub("", line.strip()) for line in _without_noise(output).splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error|fail|panic|cannot", line, re.I) and "exit_code" not in line]
    sentences = [line for line in errors if not _RUST_NOTATION.match(line)]
    last = (sentences or errors or lines or [""])[-1]
    return re.sub(r"^\w+ error: ", "", last).rstrip("\\ ")[:500]


def _without_noise(output: str) -> str:
    """Return the output without messages that are no errors: those of a boot read like failures."""
    return "\n".join(line for line in output.splitlines() if not _NO_ERROR.search(line))


def _recognise(output: str) -> Death | None:
    """Return the death for causes that the exit code does not tell apart."""
    if (call := _BAD_CALL.search(output)) is not None:
        reason = f"it made the system call number {call[1]}, which its seccomp filter forbids"
        return Death(cause=DeathCause.HYPERVISOR, message=f"Firecracker failed: {reason}")
    line = next((line for line in output.splitlines() if _KVM_ERROR.search(line)), None)
    if line is not None:
        error = _PREFIX.sub("", line)[:300]
        return Death(cause=DeathCause.HYPERVISOR, message=f"KVM could not run the guest: {error}")
    return None
