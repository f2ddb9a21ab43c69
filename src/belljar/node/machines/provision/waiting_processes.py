"""Hypervisor processes that wait for a clone of their snapshot to be needed, so that a clone costs the load alone.

Nothing of a job is in them, and nothing of the snapshot is loaded. Their number follows the clones that were made
lately: for jobs, and for the warm pool. They are the first to be given up: whatever else needs memory may end them, and
a clone never waits for one.

Every method may be called while another call is suspended. So a process is removed from its bucket before anything is
awaited; the task that removed it owns it. No loop suspends while it iterates over the buckets.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import structlog

from belljar.model.errors import HostError, MachineError
from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.protocol import NetworkSlot, WaitingProcess
from belljar.system.background import Backoff, report_failure, supervise

log = structlog.get_logger()

#: Older clones do not count: where none was made lately, no process waits.
_DEMAND_SECONDS = 120.0
#: About the time in which a process starts: clones that come closer together need a process each.
_BURST_SECONDS = 0.5
#: A process that waited this long is replaced, as a clone in the pool is.
_MAX_AGE_SECONDS = 1800.0
_MAX_DEMAND = 256
_POLL_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 1.0
_MAX_PAUSE_SECONDS = 60.0


@dataclass(slots=True)
class StartedProcess:
    """A process that waits. It belongs to the holder of `stack`: closing that ends it."""

    process: WaitingProcess
    stack: AsyncExitStack
    #: Host memory that it uses, in MiB.
    memory_mb: float
    #: The slot of the later clone, still closed; `stack` releases it too. None without a network.
    slot: NetworkSlot | None = None
    #: When its snapshot was made: a later one of the same name is another.
    snapshot_made_at: int | None = None
    since: float = field(default_factory=time.monotonic)
    death_task: asyncio.Task[object] | None = None

    @property
    def is_usable(self) -> bool:
        """Whether it is alive, not stopped, and not too old."""
        return self.process.is_usable and time.monotonic() - self.since < _MAX_AGE_SECONDS

    async def end(self) -> None:
        """End the process and release everything around it. Idempotent."""
        if self.death_task is not None:
            self.death_task.cancel()
        await self.stack.aclose()


#: Starts a process of one snapshot; None while there is no snapshot. Raises MachineError, HostError, OSError.
StartProcess = Callable[[], Awaitable[StartedProcess | None]]


@dataclass(slots=True)
class _Bucket:
    """The processes of one snapshot, the times of its clones, and the function that starts more."""

    start: StartProcess
    demand_times: deque[float] = field(default_factory=lambda: deque(maxlen=_MAX_DEMAND))
    processes: deque[StartedProcess] = field(default_factory=deque)
    backoff: Backoff = field(default_factory=lambda: Backoff(_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS))
    #: No process is started before this time.
    not_before: float = 0.0
    #: The last start failed, which the log has been told.
    is_failing: bool = False

    def target_size(self, max_size: int) -> int:
        """Return how many processes should wait: as many as clones were made in the largest recent burst."""
        now = time.monotonic()
        recent = [at for at in self.demand_times if now - at < _DEMAND_SECONDS]
        largest = start = 0
        for end, at in enumerate(recent):
            while at - recent[start] > _BURST_SECONDS:
                start += 1
            largest = max(largest, end - start + 1)
        return min(max_size, largest)


class WaitingProcesses:
    """Processes that wait, in buckets by snapshot. `run` starts them until it is cancelled; then all are ended."""

    def __init__(self, *, max_size: int, has_spare_processor: Callable[[int], bool]) -> None:
        """`max_size`: limit of all buckets together.

        `has_spare_processor`: whether jobs leave a processor beside that many which are used already.
        """
        self._max_size = max_size
        self._has_spare_processor = has_spare_processor
        self._buckets: dict[str, _Bucket] = {}
        self._changed = asyncio.Event()
        #: Tasks that end processes which have left their bucket, and the memory of each until then.
        self._end_tasks: dict[asyncio.Task[None], float] = {}

    @property
    def memory_mb(self) -> float:
        """Return the host memory that all of them use, in MiB."""
        return sum(each.memory_mb for bucket in self._buckets.values() for each in bucket.processes)

    def counts(self) -> dict[str, int]:
        """Return the number of waiting processes by snapshot."""
        return {name: len(bucket.processes) for name, bucket in self._buckets.items()}

    def take(self, name: str, start: StartProcess, snapshot_made_at: int | None = None) -> StartedProcess | None:
        """Remove a process of that snapshot, made then, and return it, now the caller's; None when none waits.

        The call also records that a clone is needed; `start` starts more processes for the next ones.
        """
        bucket = self._buckets.setdefault(name, _Bucket(start))
        bucket.start = start
        bucket.demand_times.append(time.monotonic())
        self._changed.set()
        while bucket.processes:
            started = bucket.processes.popleft()
            if started.is_usable and started.snapshot_made_at == snapshot_made_at:
                if started.death_task is not None:
                    started.death_task.cancel()
                return started
            self._start_end(started)
        return None

    async def shrink_to(self, memory_mb: float) -> None:
        """End the oldest processes until all use no more than that. Returns when the memory is free."""
        while self.memory_mb > max(0.0, memory_mb):
            filled = [bucket for bucket in self._buckets.values() if bucket.processes]
            oldest = min(filled, key=lambda bucket: bucket.processes[0].since)
            self._start_end(oldest.processes.popleft())
        while self._end_tasks and self.memory_mb + sum(self._end_tasks.values()) > max(0.0, memory_mb):
            await asyncio.wait(set(self._end_tasks), return_when=asyncio.FIRST_COMPLETED)

    async def drop(self, name: str) -> None:
        """Remove a bucket and end its processes: their snapshot is not valid any more."""
        bucket = self._buckets.pop(name, None)
        if bucket is not None:
            self._end_bucket(bucket)
            await self._wait_for_ends()

    async def run(self, free_memory_mb: Callable[[], float]) -> None:
        """Start and end processes until cancelled; a failure is logged, and the work continues after a pause.

        `free_memory_mb`: memory that jobs and the pool leave now.
        """
        try:
            await supervise("waiting_processes", lambda: self._maintain(free_memory_mb))
        finally:
            await uninterrupted(self._end_all())

    async def _maintain(self, free_memory_mb: Callable[[], float]) -> None:
        while True:
            self._changed.clear()
            self._end_surplus()
            self._buckets = {
                name: bucket for name, bucket in self._buckets.items() if bucket.processes or bucket.target_size(1)
            }
            await self.shrink_to(free_memory_mb())
            if not await self._start_one(free_memory_mb):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        await self._changed.wait()

    def _end_surplus(self) -> None:
        """Remove and end processes that are dead, stopped, old or over the target size, oldest first."""
        for bucket in self._buckets.values():
            usable = [each for each in bucket.processes if each.is_usable]
            kept = usable[max(0, len(usable) - bucket.target_size(self._max_size)) :]
            surplus = [each for each in bucket.processes if each not in kept]
            bucket.processes = deque(kept)
            for each in surplus:
                self._start_end(each)

    def _next_bucket(self) -> str | None:
        """Return the name of the bucket that lacks the most processes and may be filled now; None without one."""
        if sum(self.counts().values()) >= self._max_size:
            return None
        now = time.monotonic()
        lacking = [
            (bucket.target_size(self._max_size) - len(bucket.processes), name)
            for name, bucket in self._buckets.items()
            if bucket.not_before <= now
        ]
        count, name = max(lacking, default=(0, ""))
        return name if count > 0 else None

    async def _start_one(self, free_memory_mb: Callable[[], float]) -> bool:
        """Start a process for the bucket that lacks the most; return False when none is to be started now."""
        name = self._next_bucket()
        if name is None or not self._has_spare_processor(0):
            return False
        bucket = self._buckets[name]
        expected_mb = max((each.memory_mb for each in bucket.processes), default=0.0)
        if self.memory_mb + expected_mb >= free_memory_mb():
            return False
        started = await self._start_for(bucket, name)
        if started is None:
            bucket.not_before = time.monotonic() + bucket.backoff.next()
        elif self._buckets.get(name) is not bucket or self.memory_mb + started.memory_mb > free_memory_mb():
            bucket.not_before = time.monotonic() + bucket.backoff.next()
            self._start_end(started)  # it uses more memory than expected, or its bucket was removed meanwhile
            await self._wait_for_ends()
        else:
            started.death_task = asyncio.create_task(started.process.death())
            started.death_task.add_done_callback(lambda task: self._note_death(bucket, task))
            bucket.processes.append(started)
        return True

    async def _start_for(self, bucket: _Bucket, name: str) -> StartedProcess | None:
        """Return a new process, or None. A failure is logged once until a start succeeds: clones start their own."""
        try:
            started = await bucket.start()
        except (MachineError, HostError, OSError) as error:
            if not bucket.is_failing:
                log.warning("waiting_process_failed", snapshot=name, error=str(error))
            bucket.is_failing = True
            return None
        except Exception as error:  # noqa: BLE001 (a bucket that cannot be filled must not affect the others)
            report_failure("waiting_process", error, snapshot=name)
            return None
        if started is not None:
            bucket.is_failing = False
            bucket.backoff.reset()
        return started

    def _note_death(self, bucket: _Bucket, task: asyncio.Task[object]) -> None:
        """Have a process that died replaced, after a pause that grows when they die in a row."""
        if not task.cancelled():
            bucket.not_before = time.monotonic() + bucket.backoff.next()
            self._changed.set()

    def _end_bucket(self, bucket: _Bucket) -> None:
        while bucket.processes:
            self._start_end(bucket.processes.popleft())

    def _start_end(self, started: StartedProcess) -> None:
        """Start to end a process that has left its bucket. No cancellation interrupts it; its failure is logged."""
        task = asyncio.create_task(_end(started))
        self._end_tasks[task] = started.memory_mb
        task.add_done_callback(self._end_tasks.pop)

    async def _wait_for_ends(self) -> None:
        while self._end_tasks:
            await asyncio.wait(set(self._end_tasks))

    async def _end_all(self) -> None:
        for bucket in self._buckets.values():
            self._end_bucket(bucket)
        self._buckets.clear()
        await self._wait_for_ends()


async def _end(started: StartedProcess) -> None:
    try:
        await started.end()
    except Exception as error:  # noqa: BLE001 (a process that does not end cleanly is one line in the log)
        report_failure("waiting_process_end", error, process=started.process.id)
