"""What a container's first process does: pass signals on, and reap processes that nobody waits for.

A hypervisor that is killed leaves children to process 1. In a container without an init that is belljar, and each would
stay as a zombie until the host has no process ids left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

#: What process 1 passes on to belljar.
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def run_below_init() -> None:
    """As process 1, return in a child only; this process then reaps until the child ends, and exits with its code.

    For any other process, do nothing.
    """
    if os.getpid() != 1:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # one that arrives now is passed on when the handlers are set
    child = os.fork()
    if child == 0:
        _lead_the_terminal()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        return

    def pass_on(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _lead_the_terminal() -> None:
    """Give this process a group of its own: an interrupt of the terminal must not arrive twice."""
    os.setpgid(0, 0)
    with contextlib.suppress(OSError, ValueError):
        if os.isatty(sys.stdin.fileno()):
            before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(sys.stdin.fileno(), os.getpgrp())
            signal.signal(signal.SIGTTOU, before)
