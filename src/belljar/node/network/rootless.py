"""A stand-in for the host where belljar is not root: slots in a process that is root in namespaces of its own.

That process (rootless_process.py) makes, filters and destroys slots with the same code and the same rules as root does
on the host. Behind it, slirp4netns takes what those rules let through out into the world, as connections of this
user's. So what is always refused is refused before slirp4netns sees it. When this process ends, however it ends, both
end, and nothing of them is left: their namespaces have no names.

Source: user_namespaces(7), slirp4netns(1).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from belljar.model.errors import NetworkError, NoNetwork
from belljar.node.machines.host.descriptors import check_descriptors
from belljar.node.machines.protocol import NetworkSlot
from belljar.node.network.layout import Layout, layout_words
from belljar.node.network.policy import NetworkRule, Policy
from belljar.node.network.rules import policy_rules
from belljar.node.network.slot import DnsSockets
from belljar.node.network.traffic import Traffic, parse_traffic
from belljar.system.executables import find_executable

_TUN = Path("/dev/net/tun")
_SLIRP = "slirp4netns"
_WAY_OUT = "out0"
_START_SECONDS = 30.0
_CALL_SECONDS = 30.0
_END_SECONDS = 10.0
_MAX_REPLY_BYTES = 256 * 1024


def why_no_stand_in() -> str | None:
    """Why who is not root cannot have networks here, with what to do; None when nothing is seen that forbids it."""
    if not os.access(_TUN, os.R_OK | os.W_OK):
        return (
            "jobs with a network need belljar to run as root, or /dev/net/tun to be open to this user: "
            "as root, chmod 666 /dev/net/tun (as most systems have it)"
        )
    if find_executable(_SLIRP) is None:
        return f"jobs with a network need belljar to run as root, or {_SLIRP}: apt-get install {_SLIRP}"
    return None


class RootlessBackend:
    """The pool's Host for a user who is not root."""

    def __init__(self, owner: str, layout: Layout, excepted: Iterable[NetworkRule]) -> None:
        self._owner = owner
        self._layout = layout
        self._excepted = tuple(excepted)
        #: Our ends of what tells both processes that we live.
        self._held = contextlib.ExitStack()
        self._reap: list[subprocess.Popen[bytes]] = []
        self._control: socket.socket | None = None
        self._pid = 0

    @property
    def alive(self) -> bool:
        """Whether both processes live."""
        return bool(self._reap) and all(process.poll() is None for process in self._reap)

    def open(self) -> None:
        """Start both processes. Raises NoNetwork when this user may not, NetworkError; nothing is left then."""
        try:
            check_descriptors()
            self._control, self._pid = self._start_root()
            self._start_slirp(self._pid)
            self.call("open", excepted=[[str(each.network), each.port] for each in self._excepted])
        except (OSError, subprocess.SubprocessError) as error:
            self.close()
            raise NetworkError(f"a network without root could not be set up: {error}") from error
        except (NoNetwork, NetworkError):
            self.close()
            raise

    def close(self) -> None:
        """End both; every slot goes with them. Idempotent."""
        self._control = None
        self._held.close()
        while self._reap:
            _ended(self._reap.pop())

    def make_slot(self) -> StandInSlot:
        """A slot. Raises NetworkError, and leaves nothing behind then."""
        reply, descriptors = self.call("make")
        udp, tcp, tap = descriptors
        ears = DnsSockets(socket.socket(fileno=udp), socket.socket(fileno=tcp))
        path = Path(f"/proc/{self._pid}/root{reply['namespace']}")
        return StandInSlot(self, self._layout, int(reply["number"]), path, ears, tap)

    def call(self, verb: str, **arguments: Any) -> tuple[dict[str, Any], list[int]]:
        """Have the other process do something; returns its answer and the descriptors that it sent. Blocks.

        Raises NetworkError with its words.
        """
        control = self._control
        if control is None:
            raise NetworkError("this network is gone")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.settimeout(_CALL_SECONDS)
            try:
                with theirs:
                    request = json.dumps({"verb": verb, **arguments}).encode()
                    socket.send_fds(control, [request], [theirs.fileno()])
                reply, descriptors, _, _ = socket.recv_fds(ours, _MAX_REPLY_BYTES, 3)
            except OSError as error:
                raise NetworkError(f"a network could not be changed: {error}") from error
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        if not reply:
            raise NetworkError("the process that holds the networks is gone; start belljar again")
        answer: dict[str, Any] = json.loads(reply)
        if "error" in answer:
            raise NetworkError(answer["error"])
        return answer, list(descriptors)

    def _start_root(self) -> tuple[socket.socket, int]:
        """The process that is root in namespaces of its own; it ends when our end of the socket does."""
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-P", "-m", "belljar.node.network.rootless_process", str(theirs.fileno())]
            command += [self._owner, json.dumps(layout_words(self._layout))]
            process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._reap.append(process)
        self._held.callback(control.close)
        control.settimeout(_START_SECONDS)
        reply = control.recv(_MAX_REPLY_BYTES)
        control.settimeout(_CALL_SECONDS)
        if reply != b"ready":
            words = reply.decode(errors="replace") or "it ended without a word"
            raise NoNetwork(
                f"this user cannot have networks of its own ({words}); run belljar as root, or let users have "
                "namespaces: as root, sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000 "
                "(and kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu)"
            )
        return control, process.pid

    def _start_slirp(self, pid: int) -> None:
        """The way out of those namespaces; it ends when our end of its pipe does."""
        ready, told = os.pipe()
        watched, exit_end = os.pipe()
        self._held.callback(os.close, exit_end)
        try:
            command = [_SLIRP, "--configure", f"--mtu={self._layout.mtu}", "--disable-host-loopback", "--disable-dns"]
            command += ["--enable-sandbox", "--enable-seccomp", f"--ready-fd={told}", f"--exit-fd={watched}"]
            process = subprocess.Popen(
                [*command, str(pid), _WAY_OUT],
                pass_fds=[told, watched],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(told)
            os.close(watched)
        self._reap.append(process)
        try:
            readable, _, _ = select.select([ready], [], [], _START_SECONDS)
            if not readable or os.read(ready, 1) != b"1":
                raise NetworkError(f"{_SLIRP} did not get ready; does it run here by itself?")
        finally:
            os.close(ready)


def _ended(process: subprocess.Popen[bytes]) -> None:
    """Reap a process that was told to end; kill one that does not."""
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class StandInSlot:
    """The pool's AnySlot: each verb is the other process's."""

    def __init__(
        self, host: RootlessBackend, layout: Layout, number: int, path: Path, ears: DnsSockets, tap: int
    ) -> None:
        self.number = number
        self.ears = ears
        self._host = host
        self._layout = layout
        self._path = path
        self._tap: int | None = tap
        self._removed = False

    def open_for(self, policy: Policy, mbit: float | None = None) -> None:
        """As Slot.open_for. Raises NetworkError."""
        self._host.call("open_for", number=self.number, commands=policy_rules(policy), mbit=mbit)

    def admit(self, commands: list[str]) -> None:
        """As Slot.admit. Raises NetworkError."""
        self._host.call("run", number=self.number, commands="\n".join(commands))

    def traffic(self) -> Traffic:
        """As Slot.traffic. Raises NetworkError."""
        answer, _ = self._host.call("read", number=self.number)
        received, sent = answer["bytes"]
        return parse_traffic((received, sent), answer["counters"], answer["refused_to"])

    def described(self) -> NetworkSlot:
        """What a machine is told of it."""
        return replace(self._layout.described(self._path), device=self._tap)

    def remove(self) -> None:
        """As Slot.remove. Raises NetworkError."""
        self.ears.close()
        if self._tap is not None:
            os.close(self._tap)
            self._tap = None
        if not self._removed and self._host.alive:  # all of it went with the process that held it
            self._host.call("remove", number=self.number)
            self._removed = True
