"""A command in a real terminal (a pty of this host), typed to and read from."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence


class Terminal:
    """The terminal: what was printed in it, and the command."""

    def __init__(self, master: int, slave: int, process: subprocess.Popen[bytes]) -> None:
        self._master = master
        self.slave = slave
        self.process = process
        self.printed = b""

    def type(self, data: bytes) -> None:
        os.write(self._master, data)

    def until(self, expected: bytes, seconds: float = 60) -> bytes:
        """Read until this was printed, and return what was printed since the last call."""
        deadline = time.monotonic() + seconds
        while expected not in self.printed:
            assert time.monotonic() < deadline, f"{expected!r} is not in {self.printed!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self.printed += os.read(self._master, 65536)
        before, _, self.printed = self.printed.partition(expected)
        return before + expected

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def is_raw(self) -> bool:
        """Whether neither lines are edited nor keys make signals."""
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ISIG | termios.ECHO)

    def wait(self, seconds: float = 60) -> int:
        """Return the command's exit code; what it prints meanwhile is kept."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.printed
            if select.select([self._master], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.printed += os.read(self._master, 65536)
        return self.process.returncode


@contextlib.contextmanager
def in_terminal(command: Sequence[str], env: dict[str, str], columns: int = 80, rows: int = 24) -> Iterator[Terminal]:
    """Run a command whose controlling terminal is a new one; it is killed at the end of the block."""
    master, slave = os.openpty()
    try:
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *command], stdin=slave, stdout=slave, stderr=slave, env=env
        )
        try:
            yield Terminal(master, slave, process)
        finally:
            process.kill()
            process.wait(30)
    finally:
        os.close(master)
        os.close(slave)
