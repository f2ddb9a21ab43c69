"""Commands in the guest: their description, and the operations that start and run them.

An operation talks over the connection's frame stream and owns it until it returns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from belljar.model.errors import GuestProtocolError
from belljar.model.secrets import SecretValue
from belljar.node.guest import requests, wire
from belljar.node.guest.channel_messages import Usage
from belljar.node.guest.frame_stream import WINDOW, FrameStream
from belljar.node.guest.sinks import OutputSink
from belljar.node.guest.wire import FrameType, RunFlag, Stream


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command for the agent to run."""

    #: The program and its arguments; a program without a slash is searched in the environment's PATH.
    argv: Sequence[str]
    env: dict[str, str]
    #: Variables whose values are secrets; none of them is in `env`.
    secret_env: Mapping[str, SecretValue] = field(default_factory=dict)
    #: Secrets that are files below SECRETS_FOLDER, by file name.
    secret_files: Mapping[str, SecretValue] = field(default_factory=dict)
    cwd: str = "/work"
    uid: int = 1000
    gid: int = 1000
    max_processes: int = 512
    #: Name of the prefork program that may run this command, if one waits in the machine.
    prefork: str = ""
    #: Whether another command follows this one in the same working folder.
    keep: bool = False
    #: False only in tests that run the agent as an ordinary process.
    isolated: bool = True


class CommandFailed(Exception):
    """The agent could not start the command: the stage that failed, and the guest's errno."""

    def __init__(self, stage: wire.Stage, errno: int) -> None:
        super().__init__(f"{stage.name.lower()}: {os.strerror(errno)}")
        self.stage = stage
        self.errno = errno


async def prepare(frames: FrameStream, command: Command, *, reply_seconds: float) -> None:
    """Start processes that wait for a command: `command.argv` starts the prefork program that `command` names, if any.

    Raises CommandFailed when the prefork program does not start or does not wait, MachineTimeout when the agent does
    not reply within `reply_seconds`, MachineError.
    """
    request = requests.prepare(
        uid=command.uid,
        gid=command.gid,
        max_processes=command.max_processes,
        flags=_flags(command),
        prefork=command.prefork,
    )
    await frames.send(requests.strings(command.argv, command.env) + request)
    message = await frames.receive(reply_seconds)
    if isinstance(message, wire.Failed):
        raise CommandFailed(message.stage, message.errno)
    if not isinstance(message, wire.Prepared):
        raise GuestProtocolError(f"unexpected {type(message).__name__} from guest agent (expected Prepared)")


async def run(
    frames: FrameStream,
    command: Command,
    stdin: bytes,
    sink: OutputSink,
    on_started: Callable[[wire.Started], None],
    flags: RunFlag,
    *,
    on_usage: Callable[[Usage], None],
    reply_seconds: float,
) -> wire.Exited:
    """Run the command to its end; write its output to `sink` as it comes, call `on_started` once.

    `on_usage` is called with each message of usage while the command runs, and raises GuestProtocolError for one that
    was not asked for. With `flags`, another command may follow. Raises CommandFailed when the command could not be
    started, MachineTimeout when the agent does not get ready for the next command within `reply_seconds`, MachineError.
    """
    await _send_command(frames, command, _flags(command) | flags)
    async with frames.keep_alive(), frames.background(frames.send_stdin(stdin)):
        exited = await _receive_until_exited(frames, sink, on_started, on_usage)
    if flags:
        await _rest(frames, reply_seconds)
    return exited


async def _send_command(frames: FrameStream, command: Command, flags: RunFlag) -> None:
    request = requests.run(
        uid=command.uid,
        gid=command.gid,
        max_processes=command.max_processes,
        flags=flags,
        cwd=command.cwd.encode(),
        prefork=command.prefork,
    )
    for name, value in command.secret_files.items():
        await frames.send(requests.secret_file(name, value, uid=command.uid, gid=command.gid))
    strings = requests.strings(command.argv, command.env) + requests.secret_strings(command.secret_env)
    await frames.send(strings + request)
    await frames.grant(Stream.STDOUT, WINDOW)
    await frames.grant(Stream.STDERR, WINDOW)


async def _receive_until_exited(
    frames: FrameStream,
    sink: OutputSink,
    on_started: Callable[[wire.Started], None],
    on_usage: Callable[[Usage], None],
) -> wire.Exited:
    has_started = False
    unacknowledged = {Stream.STDOUT: 0, Stream.STDERR: 0}
    discarded: set[Stream] = set()
    while True:
        message = await frames.receive()
        match message:
            case wire.Output(stream, data) if has_started:
                await sink.write(stream, data)
                unacknowledged[stream] += len(data)
                if stream not in discarded and sink.full(stream):
                    discarded.add(stream)
                    await frames.send(wire.frame(FrameType.DISCARD, stream=stream))
                if unacknowledged[stream] >= WINDOW // 4:
                    await frames.grant(stream, unacknowledged[stream])
                    unacknowledged[stream] = 0
            case Usage() if has_started:
                on_usage(message)
            case wire.Started() if not has_started:
                has_started = True
                on_started(message)
            case wire.Exited() if has_started:
                return message
            case wire.Failed(stage, errno) if not has_started:
                raise CommandFailed(stage, errno)
            case _:
                raise GuestProtocolError(f"unexpected {type(message).__name__} from guest agent while a command runs")


async def _rest(frames: FrameStream, reply_seconds: float) -> None:
    """Get the agent ready for the next command; this one's credit is void."""
    await frames.send(wire.frame(FrameType.REST))
    message = await frames.receive(reply_seconds)
    if not isinstance(message, wire.Rested):
        raise GuestProtocolError(f"unexpected {type(message).__name__} from guest agent (expected Rested)")
    frames.reset_credit()


def _flags(command: Command) -> RunFlag:
    return RunFlag.ISOLATED if command.isolated else RunFlag(0)
