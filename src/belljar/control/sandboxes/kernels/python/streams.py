"""The kernel's channel to the host, and the pipes behind the standard streams of user code."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import io
import json
import os
import select
import sys
import termios
import threading
import time
from collections.abc import Iterator
from typing import Any

#: Bytes of output that are read, and sent in a message, at a time.
_PIECE_BYTES = 64 * 1024
#: The size of the pipes. A C extension that writes more without releasing the GIL would wait for its own reader.
_PIPE_BYTES = 1024 * 1024
#: Characters of each stream that are kept of what is written between two runs.
_MAX_HELD_CHARACTERS = 64 * 1024
#: How often text without a line end is flushed while code runs, in milliseconds.
_FLUSH_MS = 200
#: How long the beginning of a line waits for its rest while code runs.
_BEGUN_SECONDS = 0.15


class Interrupts:
    """Turns SIGINT into KeyboardInterrupt while user code runs, but never inside of a message that is being sent."""

    def __init__(self) -> None:
        self.is_running = False
        self._depth = 0
        self._is_wanted = False

    def handle(self, *_: Any) -> None:
        """Handle SIGINT. Between runs it does nothing."""
        if not self.is_running:
            return
        if self._depth:
            self._is_wanted = True
        else:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Put an interrupt off until the end of the block. Only the main thread gets any."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._is_wanted and not self._depth:
            self._is_wanted = False
            if self.is_running:
                raise KeyboardInterrupt


class Channel:
    """Messages to and from the host: a JSON object in each line, in ASCII."""

    def __init__(self, requests: int, replies: int, interrupts: Interrupts) -> None:
        self._requests = requests
        self._replies = replies
        self._interrupts = interrupts
        self._lock = threading.Lock()
        self._rest = b""
        #: The id of the run that goes on; None between runs.
        self.run: str | None = None
        self.is_open = True

    def receive(self) -> dict[str, Any] | None:
        """Return the next request; None at the end of all."""
        while b"\n" not in self._rest:
            piece = os.read(self._requests, _PIECE_BYTES)
            if not piece:
                return None
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        request: dict[str, Any] = json.loads(line)
        return request

    def send(self, kind: str, **fields: Any) -> None:
        """Send a message. In a forked process nothing is sent."""
        if not self.is_open:
            return
        line = memoryview(encoded({"type": kind, "run": self.run, **fields}) + b"\n")
        with self._interrupts.held(), self._lock:
            while line:
                line = line[os.write(self._replies, line) :]

    def close(self) -> None:
        """Close the descriptors, in a forked process."""
        self.is_open = False
        os.close(self._requests)
        os.close(self._replies)


def encoded(value: Any) -> bytes:
    """Return a value as JSON; a surrogate without its other half becomes a question mark."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    if "\\ud" in text:
        valid = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        text = json.dumps(json.loads(valid), separators=(",", ":"))
    return text.encode()


class _Pipe:
    """What user code writes to one standard stream: this end of a pipe."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.fd, write_end = os.pipe()
        os.dup2(write_end, number)
        os.close(write_end)
        os.set_blocking(self.fd, False)
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # type: ignore[attr-defined, unused-ignore]
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        #: The beginning of a line that waits for its rest, and since when: the node finds a secret only in one message.
        self.begun = ""
        self.begun_at = 0.0
        #: What was written between two runs.
        self.held = ""

    def waiting_bytes(self) -> int:
        """Return how many bytes can be read."""
        count = bytearray(4)
        fcntl.ioctl(self.fd, termios.FIONREAD, count)
        return int.from_bytes(count, sys.byteorder)

    def read(self) -> bytes:
        """Return what can be read now, of a bounded size."""
        try:
            return os.read(self.fd, _PIECE_BYTES)
        except BlockingIOError:
            return b""


class StandardStreams:
    """Puts pipes behind descriptors 1 and 2, and sends what is written into them: also by child processes.

    What threads and processes write between two runs is kept, within a bound, and sent with the next run.
    """

    def __init__(self, channel: Channel, interrupts: Interrupts) -> None:
        self._channel = channel
        self._interrupts = interrupts
        self._lock = threading.RLock()
        self._pipes: list[_Pipe] = [_Pipe("stdout", 1), _Pipe("stderr", 2)]
        self._wake_read, self._wake_write = os.pipe()
        sys.stdout = _text_stream(1)
        sys.stderr = _text_stream(2)
        threading.Thread(target=self._pump, name="output of the kernel", daemon=True).start()

    def begin(self) -> None:
        """Send what was written since the last run, as part of this one."""
        with self._interrupts.held(), self._lock:
            for pipe in self._pipes:
                text, pipe.held = pipe.held, ""
                self._send(pipe, text)
        os.write(self._wake_write, b"\0")

    def drain(self) -> None:
        """Send what was written until now."""
        if not self._channel.is_open:
            return
        with self._interrupts.held():
            flush()
            with self._lock:
                for pipe in self._pipes:
                    left = pipe.waiting_bytes()  # one that is written to all the time has no end
                    while left > 0 and (data := pipe.read()):
                        left -= len(data)
                        self._send_lines(pipe, pipe.decoder.decode(data))
                    self._send_begun(pipe)

    def _pump(self) -> None:
        poll = select.poll()
        for fd in (self._wake_read, *(pipe.fd for pipe in self._pipes)):
            poll.register(fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll(_FLUSH_MS if self._channel.run is not None else None)}
            if self._wake_read in ready:
                os.read(self._wake_read, 64)
            elif not ready:
                flush()
            with self._lock:
                for pipe in self._pipes:
                    if pipe.fd in ready:
                        self._send_lines(pipe, pipe.decoder.decode(pipe.read()))
                    if pipe.begun and time.monotonic() - pipe.begun_at >= _BEGUN_SECONDS:
                        self._send_begun(pipe)

    def _send_lines(self, pipe: _Pipe, text: str) -> None:
        """Send whole lines; what follows them waits for its end, but not for long."""
        end = text.rfind("\n") + 1
        if end:
            self._send(pipe, pipe.begun + text[:end])
            pipe.begun, text = "", text[end:]
        if text and not pipe.begun:
            pipe.begun_at = time.monotonic()
        pipe.begun += text
        if len(pipe.begun) > _PIECE_BYTES:
            self._send_begun(pipe)

    def _send_begun(self, pipe: _Pipe) -> None:
        text, pipe.begun = pipe.begun, ""
        self._send(pipe, text)

    def _send(self, pipe: _Pipe, text: str) -> None:
        if not text:
            return
        if self._channel.run is None:
            pipe.held = (pipe.held + text)[-_MAX_HELD_CHARACTERS:]
        else:
            self._channel.send(pipe.name, text=text)


def _text_stream(number: int) -> io.TextIOWrapper:
    raw = open(number, "wb", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def flush() -> None:
    """Flush what user code has left as its standard streams."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
