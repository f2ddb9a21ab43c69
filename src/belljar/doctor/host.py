"""`belljar doctor`'s look at the host itself: what Firecracker's production host setup recommends, and what jobs need.

Source: Firecracker's docs/prod-host-setup.md and kernel-policy.md. Everything is read below a root folder, so that the
tests can show it other hosts.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Iterator
from pathlib import Path

from belljar.doctor.check import Check, either

#: The oldest host kernel that Firecracker's releases were tested on.
_OLDEST_KERNEL = (5, 10)
#: Kernels from 6.1 on move processes between cgroups slowly, and back huge pages slowly, unless they are told not to.
_SLOWER_SINCE = (6, 1)
_OLDEST_YEAR = 2025
#: What adjtimex(2) returns when nothing keeps the clock right.
_UNSYNCHRONISED = 5


def check_host_setup(root: Path = Path("/")) -> Iterator[Check]:
    """Every finding about processors, memory, kernel and clock."""
    yield _kernel(root)
    yield from _processors(root)
    yield from _memory(root)
    yield _console(root)
    yield from _kvm_module(root)
    yield _clock()


def _text(path: Path) -> str | None:
    """A file's text without the white space around it; None when there is none to read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _kernel(root: Path) -> Check:
    release = _text(root / "proc/sys/kernel/osrelease") or "unknown"
    return either(
        "kernel",
        _version(release) >= _OLDEST_KERNEL,
        f"Linux {release}",
        f"Linux {release} is older than {'.'.join(map(str, _OLDEST_KERNEL))}",
        fix="install a newer kernel from your distribution, and keep it patched",
        why="every boundary relies on the host's kernel; Firecracker is not tested on older ones",
    )


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release)[:2])


def _processors(root: Path) -> Iterator[Check]:
    yield either(
        "SMT",
        _text(root / "sys/devices/system/cpu/smt/active") != "1",
        "off: no two machines share a core",
        "on: two machines may share a core",
        fix="echo off >/sys/devices/system/cpu/smt/control (and `nosmt` on the kernel's command line)",
        why="threads of one core leak to each other; turn it off where tenants do not trust each other",
    )
    line = f" {_text(root / 'proc/cmdline') or ''} "
    switched_off = [word for word in ("mitigations=off", "nopti", "nospectre_v2", "mds=off") if f" {word} " in line]
    yield either(
        "mitigations",
        not switched_off,
        "not switched off on the kernel's command line",
        f"switched off: {' '.join(switched_off)}",
        fix="take it from the kernel's command line and restart the host",
        why="a job could read the memory of the host and of other machines",
        level="fail",
    )
    folder = root / "sys/devices/system/cpu/vulnerabilities"
    open_ones = sorted(
        path.name
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (_text(path) or "").startswith("Vulnerable")
    )
    yield either(
        "vulnerabilities",
        not open_ones,
        "the kernel knows of none that is open",
        f"open: {', '.join(open_ones)}",
        fix="install the newest kernel, and intel-microcode or amd64-microcode; in a cloud that is the operator's part",
        why="side channels between machines; see /sys/devices/system/cpu/vulnerabilities",
    )


def _memory(root: Path) -> Iterator[Check]:
    yield either(
        "KSM",
        _text(root / "sys/kernel/mm/ksm/run") in (None, "0"),
        "off",
        "on: equal pages of different machines are shared",
        fix="echo 0 >/sys/kernel/mm/ksm/run",
        why="what is shared can be told by the time it takes to write it",
    )
    plain = [device for device in _swap_devices(root) if not _is_safe_swap(root, device)]
    yield either(
        "swap",
        not plain,
        "off, in memory or encrypted",
        f"on, unencrypted: {', '.join(plain)}",
        fix="swapoff -a (and out of /etc/fstab), or encrypt it",
        why="memory of jobs may stay on the disk",
    )


def _swap_devices(root: Path) -> list[str]:
    lines = (_text(root / "proc/swaps") or "").splitlines()[1:]
    return [line.split()[0] for line in lines if line.split()]


def _is_safe_swap(root: Path, device: str) -> bool:
    name = Path(device).name
    encrypted = (_text(root / "sys/block" / name / "dm/uuid") or "").startswith("CRYPT-")
    return encrypted or name.startswith("zram")


def _console(root: Path) -> Check:
    level = (_text(root / "proc/sys/kernel/printk") or "0").split()[0]
    return either(
        "kernel messages",
        level.isdigit() and int(level) <= 4,
        "only what matters goes to the host's console",
        f"those of level {level} go to the host's console",
        fix="sysctl kernel.printk='1 4 1 7' (or `quiet loglevel=1` on the kernel's command line)",
        why="each network device that is made logs a line, and a serial console is slow: starts take longer",
    )


def _kvm_module(root: Path) -> Iterator[Check]:
    """Only where KVM is loaded; what is compiled in has the same parameters."""
    parameters = root / "sys/module/kvm/parameters"
    period = _text(parameters / "min_timer_period_us")
    if period is not None:
        yield either(
            "KVM timers",
            period.isdigit() and int(period) >= 200,
            f"a guest's timer fires every {period} µs at most",
            f"a guest's timer may fire every {period} µs",
            fix="echo 'options kvm min_timer_period_us=200' >/etc/modprobe.d/kvm.conf, and load the module again",
            why="a guest's timers are paid for by the host's kernel thread kvm-pit",
        )
    release = _version(_text(root / "proc/sys/kernel/osrelease") or "0")
    huge = _text(parameters / "nx_huge_pages")
    if huge is not None and release >= _SLOWER_SINCE:
        affected = not (_text(root / "sys/devices/system/cpu/vulnerabilities/itlb_multihit") or "").startswith("Not")
        yield either(
            "KVM huge pages",
            affected or huge == "never",
            f"nx_huge_pages is {huge}",
            f"nx_huge_pages is {huge}, which this processor does not need",
            fix="echo 'options kvm nx_huge_pages=never' >/etc/modprobe.d/kvm.conf, and load the module again",
            why="each machine's start waits for a kernel thread (Linux 6.1 and newer)",
        )


def _clock() -> Check:
    now = time.gmtime()
    if now.tm_year < _OLDEST_YEAR:
        return Check(
            "clock",
            "fail",
            f"it says {time.strftime('%Y-%m-%d', now)}",
            "set it: apt-get install systemd-timesyncd",
            "packages, certificates and keys depend on the time",
        )
    return either(
        "clock",
        _is_synchronised(),
        "kept right",
        "nothing keeps it right",
        fix="apt-get install systemd-timesyncd (or chrony)",
        why="machines are given the host's time; logs and times of jobs are by it",
    )


def _is_synchronised() -> bool:
    """adjtimex(2) with no modes set reads the clock's state; the buffer is larger than struct timex on any platform."""
    try:
        return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))) != _UNSYNCHRONISED
    except (OSError, AttributeError):
        return True
