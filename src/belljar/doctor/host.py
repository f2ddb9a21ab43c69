"""Checks of the host: what Firecracker's production host setup recommends, and what jobs need.

Source: Firecracker's docs/prod-host-setup.md and kernel-policy.md. Everything is read below a root folder, so that
tests can present other hosts.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Iterator
from pathlib import Path

from belljar.doctor.check import Check, check_that

#: The oldest host kernel that Firecracker's releases were tested on.
_OLDEST_KERNEL = (5, 10)
#: Kernels from 6.1 on move processes between cgroups slowly and split huge pages, unless configured otherwise.
_SLOWER_SINCE = (6, 1)
_OLDEST_YEAR = 2025
#: The return value of adjtimex(2) for a clock that is not synchronised.
_UNSYNCHRONISED = 5


def check_host_setup(root: Path = Path("/")) -> Iterator[Check]:
    """Check processors, memory, kernel and clock."""
    yield _kernel(root)
    yield from _processors(root)
    yield from _memory(root)
    yield _console(root)
    yield from _kvm_module(root)
    yield _clock()


def _text(path: Path) -> str | None:
    """Return a file's text without surrounding white space, or None when it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _kernel(root: Path) -> Check:
    release = _text(root / "proc/sys/kernel/osrelease") or "unknown"
    return check_that(
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
    yield check_that(
        "SMT",
        _text(root / "sys/devices/system/cpu/smt/active") != "1",
        "off: machines never share a core",
        "on: two machines may share a core",
        fix="echo off >/sys/devices/system/cpu/smt/control (and `nosmt` on the kernel's command line)",
        why="threads of one core leak data to each other; turn SMT off if tenants do not trust each other",
    )
    line = f" {_text(root / 'proc/cmdline') or ''} "
    disabled = [word for word in ("mitigations=off", "nopti", "nospectre_v2", "mds=off") if f" {word} " in line]
    yield check_that(
        "mitigations",
        not disabled,
        "not disabled on the kernel's command line",
        f"disabled: {' '.join(disabled)}",
        fix="remove it from the kernel's command line and restart the host",
        why="a job could read the memory of the host and of other machines",
        level="fail",
    )
    folder = root / "sys/devices/system/cpu/vulnerabilities"
    open_ones = sorted(
        path.name
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (_text(path) or "").startswith("Vulnerable")
    )
    yield check_that(
        "vulnerabilities",
        not open_ones,
        "the kernel reports none",
        f"unmitigated: {', '.join(open_ones)}",
        fix="install the newest kernel, and intel-microcode or amd64-microcode; in a cloud the provider does this",
        why="side channels between machines; see /sys/devices/system/cpu/vulnerabilities",
    )


def _memory(root: Path) -> Iterator[Check]:
    yield check_that(
        "KSM",
        _text(root / "sys/kernel/mm/ksm/run") in (None, "0"),
        "off",
        "on: identical pages of different machines are shared",
        fix="echo 0 >/sys/kernel/mm/ksm/run",
        why="the time of a write reveals which pages are shared",
    )
    plain = [device for device in _swap_devices(root) if not _is_safe_swap(root, device)]
    yield check_that(
        "swap",
        not plain,
        "off, in memory or encrypted",
        f"on, unencrypted: {', '.join(plain)}",
        fix="swapoff -a (and out of /etc/fstab), or encrypt it",
        why="memory of jobs may remain on the disk",
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
    return check_that(
        "kernel messages",
        level.isdigit() and int(level) <= 4,
        "only important messages go to the host's console",
        f"messages of level {level} go to the host's console",
        fix="sysctl kernel.printk='1 4 1 7' (or `quiet loglevel=1` on the kernel's command line)",
        why="each new network device logs a line and a serial console is slow, so machines start later",
    )


def _kvm_module(root: Path) -> Iterator[Check]:
    """Check the parameters of KVM, if it is loaded or built in."""
    parameters = root / "sys/module/kvm/parameters"
    period = _text(parameters / "min_timer_period_us")
    if period is not None:
        yield check_that(
            "KVM timers",
            period.isdigit() and int(period) >= 200,
            f"a guest's timer fires at most every {period} µs",
            f"a guest's timer may fire every {period} µs",
            fix="echo 'options kvm min_timer_period_us=200' >/etc/modprobe.d/kvm.conf, and reload the module",
            why="a guest's timers use processor time of the host's kernel thread kvm-pit",
        )
    release = _version(_text(root / "proc/sys/kernel/osrelease") or "0")
    huge = _text(parameters / "nx_huge_pages")
    if huge is not None and release >= _SLOWER_SINCE:
        affected = not (_text(root / "sys/devices/system/cpu/vulnerabilities/itlb_multihit") or "").startswith("Not")
        yield check_that(
            "KVM huge pages",
            affected or huge == "never",
            f"nx_huge_pages is {huge}",
            f"nx_huge_pages is {huge}, unnecessary for this processor",
            fix="echo 'options kvm nx_huge_pages=never' >/etc/modprobe.d/kvm.conf, and reload the module",
            why="each machine's start waits for a kernel thread (Linux 6.1 and newer)",
        )


def _clock() -> Check:
    now = time.gmtime()
    if now.tm_year < _OLDEST_YEAR:
        return Check(
            "clock",
            "fail",
            f"it shows {time.strftime('%Y-%m-%d', now)}",
            "set the clock: apt-get install systemd-timesyncd",
            "packages, certificates and keys depend on the time",
        )
    return check_that(
        "clock",
        _is_synchronised(),
        "synchronised (NTP)",
        "not synchronised (NTP)",
        fix="apt-get install systemd-timesyncd (or chrony)",
        why="machines take the host's time, and so do logs and the times of jobs",
    )


def _is_synchronised() -> bool:
    """Return whether the clock is synchronised. adjtimex(2) writes a struct timex, which is smaller than the buffer."""
    try:
        return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))) != _UNSYNCHRONISED
    except (OSError, AttributeError):
        return True
