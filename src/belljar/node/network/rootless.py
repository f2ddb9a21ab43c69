"""The backend for users who are not root: slots in a helper process that is root in namespaces of its own.

The helper (rootless_process.py) creates, filters and removes slots with the same code and rules as root does on the
host. Behind it, slirp4netns forwards the allowed packets as connections of this user, so blocked destinations are
refused before slirp4netns sees them. When this process ends in any way, both end and leave nothing: their namespaces
have no names.

Sources: user_namespaces(7), slirp4netns(1).
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
from belljar.node.network.flows.reading import FlowReading, reading_from_json
from belljar.node.network.layout import Layout, layout_to_json
from belljar.node.network.policy import NetworkRule, Policy
from belljar.node.network.rules import policy_rules
from belljar.node.network.slot import DnsSockets
from belljar.node.network.traffic import Traffic, parse_traffic
from belljar.system.executables import find_executable

_TUN = Path("/dev/net/tun")
_SLIRP = "slirp4netns"
_UPLINK = "out0"
_START_SECONDS = 30.0
_CALL_SECONDS = 30.0
_END_SECONDS = 10.0
_MAX_REPLY_BYTES = 256 * 1024


def rootless_unavailable_reason() -> str | None:
    """Return why a user who is not root cannot have networks here, and what to do; None without a known obstacle."""
    if not os.access(_TUN, os.R_OK | os.W_OK):
        return (
            "jobs with a network need belljar to run as root, or /dev/net/tun to be open to this user: "
            "as root, chmod 666 /dev/net/tun (as most systems have it)"
        )
    if find_executable(_SLIRP) is None:
        return f"jobs with a network need belljar to run as root, or {_SLIRP}: apt-get install {_SLIRP}"
    return None


class RootlessBackend:
    """The backend.NetworkBackend of a user who is not root."""

    def __init__(self, owner: str, layout: Layout, exceptions: Iterable[NetworkRule]) -> None:
        self._owner = owner
        self._layout = layout
        self._exceptions = tuple(exceptions)
        #: This process's ends of the socket and pipe whose closing ends both processes.
        self._stack = contextlib.ExitStack()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._control: socket.socket | None = None
        self._pid = 0

    @property
    def alive(self) -> bool:
        """Return whether both processes are running."""
        return bool(self._processes) and all(process.poll() is None for process in self._processes)

    def open(self) -> None:
        """Start both processes. Raises NoNetwork when this user may not, NetworkError; leaves nothing behind then."""
        try:
            check_descriptors()
            self._control, self._pid = self._start_root()
            self._start_slirp(self._pid)
            self.call("open", exceptions=[[str(each.network), each.port] for each in self._exceptions])
        except (OSError, subprocess.SubprocessError) as error:
            self.close()
            raise NetworkError(f"cannot set up networking without root: {error}") from error
        except (NoNetwork, NetworkError):
            self.close()
            raise

    def close(self) -> None:
        """End both processes, and with them every slot. Idempotent."""
        self._control = None
        self._stack.close()
        while self._processes:
            _reap(self._processes.pop())

    def create_slot(self) -> RootlessSlot:
        """Create a slot. Raises NetworkError, and leaves nothing behind then."""
        data, descriptors = self.call("create")
        udp, tcp, tap = descriptors
        dns_sockets = DnsSockets(socket.socket(fileno=udp), socket.socket(fileno=tcp))
        path = Path(f"/proc/{self._pid}/root{data['namespace']}")
        return RootlessSlot(self, self._layout, int(data["number"]), path, dns_sockets, tap)

    def call(self, method: str, **arguments: Any) -> tuple[dict[str, Any], list[int]]:
        """Call a method of the helper; return its reply and the descriptors that it sent. Blocks.

        Raises NetworkError with the helper's message.
        """
        control = self._control
        if control is None:
            raise NetworkError("this network was closed")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.settimeout(_CALL_SECONDS)
            try:
                with theirs:
                    request = json.dumps({"method": method, **arguments}).encode()
                    socket.send_fds(control, [request], [theirs.fileno()])
                data, descriptors, _, _ = socket.recv_fds(ours, _MAX_REPLY_BYTES, 3)
            except OSError as error:
                raise NetworkError(f"cannot change a network: {error}") from error
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        if not data:
            raise NetworkError("the network helper process has exited; start belljar again")
        reply: dict[str, Any] = json.loads(data)
        if "error" in reply:
            raise NetworkError(reply["error"])
        return reply, list(descriptors)

    def _start_root(self) -> tuple[socket.socket, int]:
        """Start the helper; it ends when this end of the socket is closed."""
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-P", "-m", "belljar.node.network.rootless_process", str(theirs.fileno())]
            command += [self._owner, json.dumps(layout_to_json(self._layout))]
            process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._processes.append(process)
        self._stack.callback(control.close)
        control.settimeout(_START_SECONDS)
        data = control.recv(_MAX_REPLY_BYTES)
        control.settimeout(_CALL_SECONDS)
        if data != b"ready":
            message = data.decode(errors="replace") or "the helper exited without a message"
            raise NoNetwork(
                f"this user cannot have networks of its own ({message}); run belljar as root, or let users have "
                "namespaces: as root, sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000 "
                "(and kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu)"
            )
        return control, process.pid

    def _start_slirp(self, pid: int) -> None:
        """Start slirp4netns as the uplink of the helper's namespaces; it ends when this end of its pipe is closed."""
        ready, ready_write = os.pipe()
        exit_read, exit_write = os.pipe()
        self._stack.callback(os.close, exit_write)
        try:
            command = [_SLIRP, "--configure", f"--mtu={self._layout.mtu}", "--disable-host-loopback", "--disable-dns"]
            command += ["--enable-sandbox", "--enable-seccomp", f"--ready-fd={ready_write}", f"--exit-fd={exit_read}"]
            process = subprocess.Popen(
                [*command, str(pid), _UPLINK],
                pass_fds=[ready_write, exit_read],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(ready_write)
            os.close(exit_read)
        self._processes.append(process)
        try:
            readable, _, _ = select.select([ready], [], [], _START_SECONDS)
            if not readable or os.read(ready, 1) != b"1":
                raise NetworkError(f"{_SLIRP} did not get ready; run it by hand to see its error")
        finally:
            os.close(ready)


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that is ending; kill it after _END_SECONDS."""
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class RootlessSlot:
    """A backend.Slot in the helper, to which each method is a call."""

    def __init__(
        self, backend: RootlessBackend, layout: Layout, number: int, path: Path, dns_sockets: DnsSockets, tap: int
    ) -> None:
        self.number = number
        self.dns_sockets = dns_sockets
        self._backend = backend
        self._layout = layout
        self._path = path
        self._tap: int | None = tap
        self._removed = False

    def apply_policy(self, policy: Policy, mbit: float | None = None) -> None:
        """Apply the policy, as KernelSlot.apply_policy does. Raises NetworkError."""
        self._backend.call("apply_policy", number=self.number, commands=policy_rules(policy), mbit=mbit)

    def allow(self, commands: list[str]) -> None:
        """Run commands, as KernelSlot.allow does. Raises NetworkError."""
        self._backend.call("run", number=self.number, commands="\n".join(commands))

    def read_traffic(self) -> Traffic:
        """Return the traffic and refusals so far. Raises NetworkError."""
        reply, _ = self._backend.call("read", number=self.number)
        received, sent = reply["bytes"]
        return parse_traffic((received, sent), reply["counters"], reply["refused_destinations"])

    def read_flows(self) -> FlowReading:
        """Return the flows so far. Raises NetworkError."""
        reply, _ = self._backend.call("read_flows", number=self.number)
        return reading_from_json(reply)

    def network_slot(self) -> NetworkSlot:
        """Return the slot as its machine needs it, with an open TAP device."""
        return replace(self._layout.network_slot(self._path), device=self._tap)

    def remove(self) -> None:
        """Remove the slot. Idempotent. Raises NetworkError."""
        self.dns_sockets.close()
        if self._tap is not None:
            os.close(self._tap)
            self._tap = None
        if not self._removed and self._backend.alive:  # otherwise it ended with the helper
            self._backend.call("remove", number=self.number)
            self._removed = True
