"""Sandboxes in real machines, through the link: what only namespaces, users, clones and a hypervisor show."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from belljar.app.worker import open_queue, open_worker
from belljar.control.api.services import Services, open_services
from belljar.images.catalog import Images
from belljar.link.sandboxes import SandboxMachine
from belljar.model.errors import InvalidOption
from belljar.model.sandbox import EndReason, Sandbox, SandboxStatus
from belljar.model.sandbox_errors import FileForbidden, StreamBroken
from belljar.model.sandbox_values import ROOT, GuestUser, ProcessExit, ProcessRequest, TerminalSize
from belljar.model.secrets import SecretUse, SecretValue
from belljar.node.machines.host.usage import children
from belljar.settings import Settings
from support.sandboxes import new_sandbox

pytestmark = pytest.mark.vm

SECONDS = 180


@asynccontextmanager
async def node(data_dir: Path, built_images: Path, **settings: object) -> AsyncIterator[Services]:
    """A control plane and a worker in this process."""
    data_dir.mkdir()
    (data_dir / "images").symlink_to(built_images / "images")
    chosen = Settings(data_dir=data_dir, accelerator="tcg", pool="off", **settings)  # type: ignore[arg-type]
    async with open_services(chosen) as services:
        queue = open_queue(services)
        worker = open_worker(services, queue, "local", with_sandboxes=True)
        tasks = [asyncio.create_task(each.run()) for each in (queue, services.sandbox_queue, worker)]
        try:
            yield services
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    assert not [pid for pid in children(os.getpid()) if b"qemu" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def create(services: Services, **fields: object) -> Sandbox:
    digest = Images(services.settings.data_dir).get("python").manifest.digest
    sandbox = new_sandbox(image="python", image_digest=digest, memory_mb=256, **fields)  # type: ignore[arg-type]
    await services.sandbox_queue.store.insert(sandbox)
    services.sandbox_queue.changes.waiting.notify()
    return sandbox


async def until(services: Services, sandbox: Sandbox, *statuses: SandboxStatus) -> Sandbox:
    with services.sandbox_queue.changes.watching(sandbox.id) as topic:
        async with asyncio.timeout(SECONDS):
            while True:
                count = topic.count
                found = await services.sandbox_queue.store.get(None, sandbox.id)
                assert found is not None
                if found.status in statuses:
                    return found
                assert not found.status.terminal, found.end
                await topic.wait_beyond(count, 1)


async def run(machine: SandboxMachine, text: str, **fields: object) -> str:
    request = ProcessRequest(args=("sh", "-c", text), stdin=b"", **fields)  # type: ignore[arg-type]
    process = await machine.start(request)
    out = b""
    async for piece in machine.output(process.id):
        if isinstance(piece, ProcessExit):
            assert piece.exit_code == 0, (text, out, piece)
            return out.decode().strip()
        out += piece.data
    raise AssertionError("the output had no end")


async def test_a_sandbox_in_a_booted_machine_and_one_in_a_clone(built_images: Path, tmp_path: Path) -> None:
    async with node(tmp_path / "data", built_images) as services:
        await services.projects.create("mine")
        await services.secrets.set("mine", "TOKEN", SecretValue(b"s3cret"))
        secrets = (SecretUse(name="TOKEN"), SecretUse.model_validate({"name": "TOKEN", "as": "file", "env": "FILE"}))
        sources = set()
        for _ in range(2):  # the second one finds the snapshot that the first one had made
            sandbox = await until(services, await create(services, secrets=secrets[:1]), SandboxStatus.RUNNING)
            assert sandbox.machine is not None
            sources.add(sandbox.machine.source)
            machine = services.sandbox_queue.machines.get(sandbox)
            await _check(machine)
            await _check_terminal(machine)
            await services.sandbox_queue.store.request_end(None, sandbox.id, EndReason.DELETED, "it was deleted")
            services.sandbox_queue.changes.orders.notify()
            await until(services, sandbox, SandboxStatus.ENDED)
            while sources == {"boot"} and not list((tmp_path / "data").rglob("snapshot.json")):
                await asyncio.sleep(0.1)
        assert sources == {"boot", "snapshot"}

        filed = await until(services, await create(services, secrets=secrets[1:], user=ROOT), SandboxStatus.RUNNING)
        machine = services.sandbox_queue.machines.get(filed)
        assert await run(machine, 'wc -c < "$FILE"; cat "$FILE"; id -u; echo $HOME; touch x') == "6\n***0\n/root"
        assert (
            await run(machine, "id -u; cat /run/secrets/TOKEN 2>/dev/null || true", user=GuestUser(uid=1000, gid=1000))
            == "1000"
        )
        waiting = asyncio.create_task(run(machine, "sleep 1000"))
        await asyncio.sleep(0.2)
        for pid in _hypervisors():
            os.kill(pid, signal.SIGKILL)
        lost = await until(services, filed, SandboxStatus.LOST)
        assert lost.end is not None and lost.end.reason is EndReason.MACHINE_DIED and "SIGKILL" in lost.end.message
        with pytest.raises(StreamBroken):
            await waiting


def _hypervisors() -> list[int]:
    return [pid for pid in children(os.getpid()) if b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def _check(machine: SandboxMachine) -> None:
    assert await run(machine, "id -u; pwd; echo $TOKEN; echo ${#TOKEN}") == "1000\n/work\n***\n6"  # output is masked
    with pytest.raises(InvalidOption, match="as uid 1000, not as uid 0"):
        await run(machine, "id -u", user=ROOT)
    assert await run(machine, "echo kept > /tmp/f; echo here > g") == ""
    assert await run(machine, "cat /tmp/f g; ls /sys/class/net") == "kept\nhere\nlo"
    with pytest.raises(FileForbidden):
        await machine.files.stat("/root/x")
    assert (await machine.files.stat("/etc/passwd")).uid == 0
    entries = [entry.path async for entry in machine.files.list("/work")]
    assert entries == ["g"]
    usage = await machine.usage()
    assert 0 < usage.memory_bytes < usage.memory_limit_bytes
    process = await machine.start(
        ProcessRequest(args=("python3", "-m", "http.server", "8000", "--bind", "127.0.0.1"), background=True)
    )
    async with asyncio.timeout(SECONDS):
        while 8000 not in {each.port for each in await machine.ports()}:
            await asyncio.sleep(0.1)
    async with machine.connect(8000) as stream:
        await stream.write(b"GET /g HTTP/1.0\r\n\r\n")
        answer = b"".join([data async for data in stream])
    assert answer.startswith(b"HTTP/1.0 200") and answer.endswith(b"here\n")
    await machine.forget(process.id)


async def _check_terminal(machine: SandboxMachine) -> None:
    shell = await machine.start(ProcessRequest(args=("sh",), terminal=TerminalSize(columns=90, rows=30)))
    await machine.write_input(shell.id, b"stty size; tty; exit 3\n")
    ended = await machine.wait(shell.id, SECONDS)
    assert ended.exit is not None and ended.exit.exit_code == 3
    pieces = [piece async for piece in machine.output(shell.id)]
    text = b"".join(piece.data for piece in pieces if not isinstance(piece, ProcessExit))
    assert b"30 90" in text and b"/dev/pts/" in text
