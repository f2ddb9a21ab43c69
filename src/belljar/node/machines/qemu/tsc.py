"""Measures the frequency of this host's time stamp counter for guests under software emulation.

QEMU's microvm has no timer that Linux can calibrate the counter against except the PIT, and on a noisy host the kernel
rejects what it measured ("Unable to calibrate against PIT"); it then has no clock event at all and hangs early in its
boot. Half of the boots did so; with `tsc_early_khz=` on the kernel's command line none did. Under TCG the guest's
counter is the host's (`cpu_get_host_ticks` in QEMU's sources), so the host can measure its frequency.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import time

#: rdtsc; shl rdx, 32; or rax, rdx; ret
_READ_TSC = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"
_INTERVAL_SECONDS = 0.02


@functools.cache
def tsc_khz() -> int | None:
    """Return the counter's kilohertz, measured once against CLOCK_MONOTONIC to a few parts in a million (20 ms).

    None on a processor that is not x86-64, or where no memory may be executed; the kernel then calibrates by itself.
    """
    if platform.machine() != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except (OSError, ValueError):
        return None
    page.write(_READ_TSC)
    read_tsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))

    def sample() -> tuple[int, int]:
        """Return nanoseconds and ticks of one moment: the try whose reading took the least time."""
        tries = []
        for _ in range(8):
            before = time.monotonic_ns()
            ticks = read_tsc()
            after = time.monotonic_ns()
            tries.append((after - before, (before + after) // 2, ticks))
        return min(tries)[1:]

    start_ns, start_ticks = sample()
    time.sleep(_INTERVAL_SECONDS)
    end_ns, end_ticks = sample()
    return round((end_ticks - start_ticks) * 1_000_000 / (end_ns - start_ns))
