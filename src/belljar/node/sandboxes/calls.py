"""Every call to a sandbox's machine goes through here: it counts as use, and its errors become those of the model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import TypeVar

from belljar.model.errors import BelljarError, InvalidOption, MachineError
from belljar.model.sandbox_errors import (
    CannotStart,
    InvalidArchive,
    PortRefused,
    ProcessEnded,
    StreamBroken,
    TooManyProcesses,
    file_error,
)
from belljar.model.sandbox_values import GuestUser
from belljar.node.guest import archive, process
from belljar.node.guest.channel import ChannelBroken, TooManyChannels
from belljar.node.guest.command import CommandFailed
from belljar.node.guest.files import FileFailed
from belljar.node.guest.port_stream import PortClosed
from belljar.node.guest.wire import Stage
from belljar.node.sandboxes.use import Use

T = TypeVar("T")

#: How long a guest may take for an answer, or for a piece of one. A hostile guest never answers.
ANSWER_SECONDS = 60.0
#: The same for work on many files.
WORK_SECONDS = 600.0


class Calls:
    """The calls to one machine, until it is closed to them."""

    def __init__(self) -> None:
        self.use = Use()
        #: Why no call is taken any more.
        self.closed: BelljarError | None = None
        #: Whether calls reach the machine now: not while it is being frozen.
        self._open = asyncio.Event()
        self._open.set()
        self._answering = 0
        self._answered = asyncio.Event()

    def close(self, reason: BelljarError) -> None:
        """Take no more calls; those under way end with their streams. The first reason stays."""
        self.closed = self.closed or reason
        self._open.set()

    async def hold(self, seconds: float) -> None:
        """Have new calls wait until `release`; wait so long for those that the guest is about to answer."""
        self._open.clear()
        if self._answering:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._answered.wait()

    def release(self) -> None:
        """Let the calls that waited go on."""
        self._open.set()

    @contextlib.asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Carry out one call as `call` does, once the machine can be reached."""
        while not self._open.is_set():
            await self._open.wait()
        with self.call():
            yield

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Carry out one call. Raises what closed the machine, and the guest's errors as errors of the model."""
        if self.closed is not None:
            raise self.closed
        with self.use.counted(), self.translated():
            yield

    @contextlib.asynccontextmanager
    async def answered(self, seconds: float | None = None) -> AsyncIterator[asyncio.Timeout]:
        """Carry out one call that the guest must answer in time (default: `ANSWER_SECONDS`).

        Raises what `call` raises, and StreamBroken for a guest that does not answer.
        """
        seconds = ANSWER_SECONDS if seconds is None else seconds
        async with self.admitted():
            self._answering += 1
            self._answered.clear()
            try:
                async with asyncio.timeout(seconds) as deadline:
                    yield deadline
            except TimeoutError:
                raise _silent(seconds) from None
            finally:
                self._answering -= 1
                if not self._answering:
                    self._answered.set()

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Raise the guest's errors as errors of the model."""
        try:
            yield
        except FileFailed as error:
            raise file_error(error.path, error.errno) from error
        except process.ProcessEnded as error:
            raise ProcessEnded(f"{error}; read its exit") from error
        except TooManyChannels as error:
            raise TooManyProcesses(str(error)) from error
        except CommandFailed as error:
            raise CannotStart(_start_message(error), stage=error.stage.name.lower()) from error
        except PortClosed as error:
            raise PortRefused(f"{error}; start a program that listens on it, or list the ports") from error
        except archive.InvalidArchive as error:
            raise InvalidArchive(str(error)) from error
        except ChannelBroken as error:
            raise self._broken(str(error)) from error
        except MachineError as error:
            raise self._broken(error.message) from error

    def _broken(self, why: str) -> BelljarError:
        if self.closed is not None:
            return StreamBroken(f"the stream broke off: {self.closed.message}", **self.closed.details)
        return StreamBroken(f"the stream broke off: {why}")


async def prompt(source: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """Yield what the guest sends. Raises StreamBroken when the next piece takes too long."""
    while True:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                each = await anext(source)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise _silent(ANSWER_SECONDS) from None
        yield each


async def patient(source: AsyncIterator[T], deadline: asyncio.Timeout) -> AsyncGenerator[T, None]:
    """Yield what a caller sends, for which the guest's deadline does not count."""
    iterator = aiter(source)
    while True:
        deadline.reschedule(None)
        each = await anext(iterator, None)
        deadline.reschedule(asyncio.get_running_loop().time() + ANSWER_SECONDS)
        if each is None:
            return
        yield each


def _silent(seconds: float) -> StreamBroken:
    return StreamBroken(f"the sandbox did not answer within {seconds:g} s; end it if that goes on")


def _start_message(error: CommandFailed) -> str:
    _, _, cause = str(error).partition(": ")
    if error.stage is Stage.EXEC:
        return f"the command cannot be started: {cause}; correct args, cwd or user"
    return f"the machine cannot start a command: {cause}"


def check_user(wanted: GuestUser | None, own: GuestUser) -> GuestUser:
    """Return who does something in a sandbox of the user `own`. Raises InvalidOption: only root's may be another."""
    if wanted is not None and own.uid != 0 and wanted.uid != own.uid:
        reason = f"this sandbox runs everything as uid {own.uid}, not as uid {wanted.uid}"
        raise InvalidOption(f"{reason}; create it with user root to run commands as other users", option="user")
    return wanted or own


def check_string(text: str, name: str) -> None:
    """Raise InvalidOption for a string with a NUL character, which no program can receive."""
    if "\0" in text:
        raise InvalidOption(f"{name} contains a NUL character; remove it", option=name)
