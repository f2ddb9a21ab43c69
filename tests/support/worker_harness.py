"""A worker without virtual machines: the real worker, recorder, SQLite store and folder of blobs; a machine is a folder
and the real agent's process, with its namespace of processes where root allows that.

A script's disk is the text of a shell script, run in the machine's folder. Faults are put in front of the store, the
blobs and the rest by name: `harness.faults.refuse("claims.finish", times=3)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import platform
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from belljar.control.blobs.store import open_blobs
from belljar.control.flows.service import FlowService
from belljar.control.jobs.blob_names import stdin_blob
from belljar.control.jobs.changes import Changes
from belljar.control.logs.job_logs import UploadTimes
from belljar.control.queue.queue import Queue
from belljar.control.sandboxes.queue import SandboxQueue
from belljar.control.scripts.disks import ScriptDisks, disk_blob
from belljar.control.secrets.keys import open_keys
from belljar.control.secrets.service import SecretService
from belljar.control.store.claims import SqlClaims
from belljar.control.store.database import Database
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.nodes import SqlNodes
from belljar.control.store.opening import open_database
from belljar.control.store.secrets import SqlSecrets
from belljar.control.store.usage_series import SqlUsageSeries
from belljar.images.build import manifest_digest
from belljar.images.catalog import Images
from belljar.link.sandboxes import SandboxMachine
from belljar.model.ids import new_id
from belljar.model.image import Image, Language, Manifest, Part
from belljar.model.job import Job, Resources
from belljar.model.sandbox import TERMINAL, EndReason, Sandbox, SandboxStatus
from belljar.model.states import Status
from belljar.node.machines.protocol import MachineSpec
from belljar.node.machines.provision.cold_boot import boot_machine
from belljar.node.machines.provision.network_slot import SlotFactory
from belljar.node.machines.provision.provisioner import MachineProvisioner
from belljar.node.machines.provision.request import ProvisionedMachine
from belljar.node.machines.provision.warm_up import WarmUp
from belljar.node.worker.capacity import Capacity
from belljar.node.worker.context import WorkerContext
from belljar.node.worker.retry import RetryTimes
from belljar.node.worker.worker import Worker
from belljar.settings import Settings
from support.agent_process import ProcessHypervisor
from support.conversation import AGENT, compile_with_agent
from support.empty_database import place_empty_database
from support.faults import Faults, Faulty
from support.sandboxes import new_sandbox

#: Pauses that a test has time for.
QUICK = RetryTimes(
    first_pause_seconds=0.01,
    max_pause_seconds=0.05,
    prepare_seconds=20,
    drain_seconds=2,
    stop_seconds=2,
)
QUICK_UPLOADS = UploadTimes(upload_seconds=2, sweep_seconds=0.2)
SHELL = Language(name="shell", run=("sh", "{entrypoint}"))


def build_agent(folder: Path) -> Path:
    """The real agent, as a program of this host."""
    binary = folder / "agent"
    compile_with_agent(binary, AGENT / "main.c", sanitizers=[])
    return binary


# --- machines ---------------------------------------------------------------------------------------------------------


class FolderSession:
    """A session with the agent of one folder: what belongs into /work happens there."""

    def __init__(self, connection: Any, folder: Path) -> None:
        self._connection = connection
        self._folder = folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def run(self, command: Any, *rest: Any) -> Any:
        place = str(self._folder)
        argv = [word.replace("/work", place) for word in command.argv]
        env = {**command.env, "HOME": place, "PATH": os.environ["PATH"]}
        return await self._connection.run(replace(command, argv=argv, env=env, cwd=place, isolated=False), *rest)

    @asynccontextmanager
    async def open_session(self, request: Any) -> AsyncIterator[Any]:
        """Open a sandbox's session: its commands run as this process's user, in the folder."""
        own = replace(request, uid=os.getuid(), gid=os.getgid(), isolated=False)
        async with self._connection.open_session(own) as session:
            start, place = session.start, str(self._folder)

            async def start_here(command: Any, **options: Any) -> Any:
                cwd = place if command.cwd == "/work" else command.cwd
                env = {**command.env, "HOME": place, "PATH": os.environ["PATH"]}
                here = replace(command, env=env, cwd=cwd, uid=os.getuid(), gid=os.getgid())
                return await start(here, **options)

            session.start = start_here
            yield session


class FolderSupply(MachineProvisioner):
    """Boots each machine as an agent's process in a folder of its own."""

    def __init__(self, folder: Path, faults: Faults) -> None:
        super().__init__(None)
        shutil.rmtree(folder, ignore_errors=True)  # a killed worker's
        self._folder = folder
        self._faults = faults

    @asynccontextmanager
    async def machine(
        self,
        hypervisor: Any,
        spec: MachineSpec,
        warm_up_steps: WarmUp,
        boot_timeout_seconds: float,
        slot_factory: SlotFactory | None = None,
    ) -> AsyncIterator[ProvisionedMachine]:
        self._faults.meet("provisioner.machine")
        folder = self._folder / os.urandom(8).hex()
        folder.mkdir(parents=True)
        try:
            if spec.script_disk is not None:
                shutil.copyfile(spec.script_disk, folder / "main.sh")
            async with AsyncExitStack() as stack:
                ready = await boot_machine(lambda: hypervisor.machine(spec), boot_timeout_seconds, stack)
                self._in_use.add(ready.machine)
                stack.callback(self._in_use.discard, ready.machine)
                yield replace(ready, connection=FolderSession(ready.connection, folder))
            self._faults.meet("provisioner.release")
        finally:
            shutil.rmtree(folder)


# --- the harness ------------------------------------------------------------------------------------------------------


@dataclass
class WorkerHarness:
    """One data folder with a store and blobs, and workers over them."""

    settings: Settings
    database: Database
    hypervisor: ProcessHypervisor
    faults: Faults
    image: Image
    retry_times: RetryTimes = QUICK
    upload_times: UploadTimes = QUICK_UPLOADS
    changes: Changes = field(default_factory=Changes)
    #: How long a sandbox waits for a node.
    sandbox_wait_seconds: float = 60
    _sandbox_queue: SandboxQueue | None = None

    @property
    def jobs(self) -> SqlJobs:
        return SqlJobs(self.database)

    @property
    def secrets(self) -> SecretService:
        return SecretService(SqlSecrets(self.database), open_keys(self.settings))

    async def submit(self, script: str, *, stdin: bytes = b"", **fields: Any) -> Job:
        """Queue a job that runs this shell script."""
        script_id = hashlib.sha256(script.encode()).hexdigest()
        blobs = open_blobs(self.settings)
        await blobs.put_bytes(disk_blob(script_id), script.encode())
        standard: dict[str, Any] = {
            "id": new_id("job"),
            "project": "mine",
            "script_id": script_id,
            "status": Status.QUEUED,
            "created_at": datetime.now(UTC),
            "language": "shell",
            "entrypoint": "main.sh",
            "image": "harness",
            "resources": Resources(vcpus=1, memory_mb=128),
            "timeout_seconds": 30,
            "stdin_bytes": len(stdin),
        }
        job = Job(**{**standard, **fields})
        if stdin:
            await blobs.put_bytes(stdin_blob(job.id), stdin)
        await self.jobs.insert(job)
        self.changes.notify_queued()
        return job

    @property
    def sandbox_queue(self) -> SandboxQueue:
        """The control plane's part for sandboxes, one for the harness."""
        lease_seconds, wait_seconds = self.settings.lease_seconds, self.sandbox_wait_seconds
        if self._sandbox_queue is None:
            self._sandbox_queue = SandboxQueue(self.database, self.secrets, lease_seconds, wait_seconds)
        return self._sandbox_queue

    async def create_sandbox(self, **fields: Any) -> Sandbox:
        """Queue a sandbox."""
        sandbox = await self.sandbox_queue.store.insert(new_sandbox(**fields))
        self.sandbox_queue.changes.waiting.notify()
        return sandbox

    async def delete_sandbox(self, sandbox: Sandbox) -> None:
        await self.sandbox_queue.store.request_end(None, sandbox.id, EndReason.DELETED, "it was deleted")
        self.sandbox_queue.changes.orders.notify()

    async def sandbox_until(self, sandbox: Sandbox, *statuses: SandboxStatus, seconds: float = 60) -> Sandbox:
        """The sandbox as soon as it has one of these statuses."""
        async with asyncio.timeout(seconds):
            while True:
                found = await self.sandbox_queue.store.get(None, sandbox.id)
                assert found is not None
                if found.status in statuses:
                    return found
                await asyncio.sleep(0.01)

    async def running_sandbox(self, **fields: Any) -> tuple[Sandbox, SandboxMachine]:
        """A new sandbox that runs, and its machine as the control plane reaches it."""
        sandbox = await self.sandbox_until(await self.create_sandbox(**fields), SandboxStatus.RUNNING, *TERMINAL)
        return sandbox, self.sandbox_queue.machines.get(sandbox)

    async def get(self, job: Job) -> Job:
        found = await self.jobs.get(None, job.id)
        assert found is not None
        return found

    async def cancel(self, job: Job) -> None:
        await self.jobs.cancel("mine", job.id)
        self.changes.notify_cancelled()

    async def until(self, job: Job, is_so: Callable[[Job], bool], seconds: float = 60) -> Job:
        """The job as soon as that holds of it."""
        async with asyncio.timeout(seconds):
            while not is_so(found := await self.get(job)):
                await asyncio.sleep(0.01)
            return found

    async def ended(self, job: Job, seconds: float = 60) -> Job:
        return await self.until(job, lambda found: found.status.terminal, seconds)

    async def running(self, job: Job) -> Job:
        return await self.until(job, lambda found: found.status is Status.RUNNING)

    def queue(self, name: str = "w1", *, faults: Faults | None = None) -> Queue:
        """Return a control plane over the harness's store, as the process of that worker has it."""
        faults, own = self.faults if faults is None else faults, self.node_settings(name)
        blobs: Any = Faulty(open_blobs(own), "blobs", faults)
        return Queue(
            settings=own,
            claims=Faulty(SqlClaims(self.database), "claims", faults),
            nodes=Faulty(SqlNodes(self.database), "nodes", faults),
            script_disks=Faulty(ScriptDisks(blobs, own.paths.script_cache), "script_disks", faults),
            images=Images(own.data_dir),
            blobs=blobs,
            changes=self.changes,
            secrets=self.secrets,
            flows=FlowService.over(self.database),
            usage=Faulty(SqlUsageSeries(self.database), "usage", faults),
            times=self.upload_times,
        )

    def worker(
        self,
        name: str = "w1",
        *,
        vcpus: int = 4,
        memory_mb: int = 4096,
        faults: Faults | None = None,
        queue: Queue | None = None,
    ) -> Worker:
        """Return a worker; its faults are the harness's unless it is given some."""
        faults, own = self.faults if faults is None else faults, self.node_settings(name)
        queue = queue or self.queue(name, faults=faults)

        async def hypervisor(image: Image) -> Any:
            faults.meet("hypervisor")
            return self.hypervisor

        context: dict[str, Any] = {
            "settings": own,
            "link": Faulty(queue.link, "link", faults),
            "images": Faulty(Images(own.data_dir), "images", faults),
            "hypervisor": hypervisor,
            "provisioner": FolderSupply(own.data_dir / "machines" / name, faults),
            "warm_ups": Faulty(NothingToPrepare(own.data_dir), "warm_ups", faults),
            "retry_times": self.retry_times,
            "sandbox_link": Faulty(self.sandbox_queue.link, "sandbox_link", faults),
        }
        return Worker(WorkerContext(**context), name, Capacity(vcpus=vcpus, memory_mb=memory_mb))

    def node_settings(self, name: str) -> Settings:
        """w1 has the harness's folder; every other worker has one of its own, over the same store and blobs."""
        if name == "w1":
            return self.settings
        folder = (base := self.settings.data_dir) / "nodes" / name
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (folder / "images").symlink_to(base / "images")
        return self.settings.model_copy(update={"data_dir": folder, "blobs_url": f"file://{base / 'blobs'}"})

    @asynccontextmanager
    async def working(self, name: str = "w1", *, faults: Faults | None = None, **options: Any) -> AsyncIterator[Worker]:
        """A worker that works for the block beside its control plane, and is then stopped as by SIGTERM."""
        queue = self.queue(name, faults=faults)
        worker = self.worker(name, faults=faults, queue=queue, **options)
        tasks = [asyncio.create_task(each.run()) for each in (worker, queue, self.sandbox_queue)]
        try:
            yield worker
            assert not any(task.done() for task in tasks), f"the worker ended by itself: {tasks}"
        finally:
            for task in tasks:
                task.cancel()
            async with asyncio.timeout(20):
                await asyncio.gather(*tasks, return_exceptions=True)

    def leftovers(self) -> list[str]:
        """Files that nobody owns when no worker works, machines and scripts among them."""
        base = self.settings.data_dir
        kept = {"worker", "server.json"}
        folders = [base / "run", base / "machines", *base.glob("nodes/*/run")]
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return [str(path.relative_to(self.settings.data_dir)) for path in files if path.name not in kept]


async def idle(worker: Worker, seconds: float = 10) -> None:
    """Wait until the worker holds nothing: it releases a job's capacity after the job's end is written."""
    async with asyncio.timeout(seconds):
        while worker.capacity.jobs:
            await asyncio.sleep(0.01)


@dataclass(frozen=True)
class NothingToPrepare:
    data_dir: Path

    async def of(self, image: Image) -> WarmUp:
        return WarmUp(disk=self.data_dir / "none", preload_commands=(), waiting_commands=(), warm_up_commands=())


@asynccontextmanager
async def opened_harness(
    data_dir: Path,
    agent: Path,
    retry_times: RetryTimes = QUICK,
    upload_times: UploadTimes = QUICK_UPLOADS,
    **settings: Any,
) -> AsyncIterator[WorkerHarness]:
    """A harness in that folder. Several processes may open one folder."""
    chosen = Settings(data_dir=data_dir, snapshots="off", pool="off", grace_seconds=0.2, **settings)
    await place_empty_database(chosen)
    database = await open_database(chosen)
    hypervisor = ProcessHypervisor(agent)
    try:
        yield WorkerHarness(chosen, database, hypervisor, Faults(), register_image(data_dir), retry_times, upload_times)
    finally:
        await hypervisor.end_kept()
        await database.close()


def register_image(data_dir: Path) -> Image:
    images = Images(data_dir)
    if (found := images.find("harness")) is not None:
        return found
    images.blobs.folder.mkdir(parents=True, exist_ok=True)

    def part(text: bytes) -> Part:
        digest = hashlib.sha256(text).hexdigest()
        (images.blobs.folder / digest).write_bytes(text)
        return Part(sha256=digest, size_bytes=len(text), origin="a test")

    manifest = Manifest(
        name="harness",
        architecture=platform.machine(),
        digest="",
        kernel=part(b"kernel"),
        initramfs=part(b"initramfs"),
        root=part(b"root"),
        languages=(SHELL,),
    )
    return images.register(manifest.model_copy(update={"digest": manifest_digest(manifest)}))
