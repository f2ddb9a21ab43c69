"""What an agent is to run, and why it could not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from belljar.node.guest import wire


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What the agent is to run."""

    #: The program and its arguments; a program without a slash is looked for in the environment's PATH.
    argv: Sequence[str]
    env: dict[str, str]
    cwd: str = "/work"
    uid: int = 1000
    gid: int = 1000
    max_processes: int = 512
    #: Name of the prefork program that this may be run in, if one waits in the machine.
    prefork: str = ""
    #: Whether another command follows this one in the same working folder.
    keep: bool = False
    #: False only in tests of the agent as an ordinary process.
    isolated: bool = True


class CommandFailed(Exception):
    """The agent could not start the command: at which stage, and the guest's errno."""

    def __init__(self, stage: wire.Stage, errno: int) -> None:
        super().__init__(f"{stage.name.lower()}: {os.strerror(errno)}")
        self.stage = stage
        self.errno = errno
