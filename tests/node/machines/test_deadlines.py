"""Every deadline of a wait for a machine grows with `boot_timeout_seconds`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from belljar.model.errors import MachineTimeout
from belljar.node.guest import requests
from belljar.node.guest.connection import AgentConnection
from belljar.node.machines import probe as probe_module
from belljar.node.machines.deadlines import deadline_factor
from belljar.node.machines.firecracker.api import FirecrackerApi
from belljar.node.machines.firecracker.bodies import SnapshotCreate
from belljar.node.machines.probe import probe
from belljar.node.machines.protocol import Death
from belljar.node.machines.provision import warm_up as warm_up_module
from belljar.node.machines.provision.warm_up import resume
from belljar.node.machines.qemu.monitor import Monitor


def test_no_deadline_gets_shorter() -> None:
    assert [deadline_factor(seconds) for seconds in (1, 60, 90, 600)] == [1, 1, 1.5, 10]


class Silent:
    """A machine that lives and sends nothing."""

    id, phases, console = "silent", {}, None  # type: ignore[var-annotated]

    async def start(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self.reader, self.writer = await asyncio.open_connection(sock=self._ours)

    def close(self) -> None:
        self.writer.close()
        self._theirs.close()

    async def death(self) -> Death:
        await asyncio.Event().wait()
        raise AssertionError


@asynccontextmanager
async def silent(*_: object) -> AsyncIterator[Silent]:
    machine = Silent()
    await machine.start()
    try:
        yield machine
    finally:
        machine.close()


async def test_a_clone_is_given_as_much_longer_as_a_boot_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up_module, "_RESUME_SECONDS", 0.05)
    async with silent() as machine:
        for boot_seconds, shown in ((60, "0.05 s"), (240, "0.2 s")):
            with pytest.raises(MachineTimeout, match=shown):
                await resume(cast(Any, machine), boot_seconds, silence_seconds=0)


async def test_the_probe_is_given_longer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "_SECONDS", 0.05)
    hypervisor, image = SimpleNamespace(machine=silent), SimpleNamespace(root=None)
    for boot_seconds, shown in ((60, "within 0.05 s"), (240, "within 0.2 s")):
        monkeypatch.setattr(probe_module, "MachineSpec", lambda **_: None)
        result = await probe(cast(Any, hypervisor), cast(Any, image), boot_seconds)
        assert result.slow and shown in str(result.fault)


async def test_the_monitor_of_a_slow_host_is_waited_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("belljar.node.machines.qemu.monitor._FREEZE_SECONDS", 0.05)
    for factor, shown in ((1.0, r"within 0\.05 s"), (4.0, r"within 0\.2 s")):
        ours, theirs = socket.socketpair()
        with ours, theirs, pytest.raises(MachineTimeout, match=shown):
            await Monitor("silent", ours, timeout_factor=factor).freeze(0)


async def test_firecrackers_answers_are_waited_for_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("belljar.node.machines.firecracker.api.SNAPSHOT_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "api"))
        mute.listen()
        for factor, shown in ((1.0, r"within 0\.05 s"), (4.0, r"within 0\.2 s")):
            async with FirecrackerApi(tmp_path / "api", timeout_factor=factor) as api:
                with pytest.raises(MachineTimeout, match=shown):
                    await api.create_snapshot(SnapshotCreate(snapshot_path="s", mem_file_path="m"))


async def test_the_agent_of_a_slow_host_bears_a_longer_silence() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=ours)
    with theirs:
        for factor, seconds in ((1.0, 30), (4.0, 120), (1e6, 0xFFFF)):
            await AgentConnection(reader, writer, timeout_factor=factor).set_clock()
            assert theirs.recv(1000)[:-8] == requests.welcome(seconds, 0)[:-8]  # the last eight are the time
        writer.close()


async def test_an_agents_answers_are_waited_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("belljar.node.guest.connection._REPLY_SECONDS", 0.05)
    async with silent() as machine:
        connection = AgentConnection(machine.reader, machine.writer, timeout_factor=4)
        with pytest.raises(MachineTimeout, match=r"within 0\.2 s"):
            await connection.suspend()
