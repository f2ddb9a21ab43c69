"""The warm pool: clones that wait for jobs of their image and shape. Each is given away once, or ended.

The target size of each bucket follows recent demand (`auto`), or is a number (`fixed`). A budget, and the memory that
jobs leave, bound the memory of all clones. Clones are made one at a time, and only while a processor is idle: the pool
must never slow down a running job.

Every method may be called while another call is suspended. So a clone is removed from the pool before anything is
awaited; the task that removed it owns it, and gives it away or ends it. No loop suspends while it iterates over the
pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable

from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.provision.warm_clone import PoolBucket, WarmClone
from belljar.system.background import report_failure, supervise

#: Pause of a bucket after a clone that could not be made.
_RETRY_SECONDS = 5.0
_POLL_SECONDS = 1.0
#: After a clone was taken, its job runs; starting a hypervisor in that moment would slow it down.
_REST_SECONDS = 0.25


class WarmPool:
    """Waiting clones in buckets. `run` keeps it filled until it is cancelled; then all clones are ended."""

    def __init__(self, *, fixed_size: int | None, max_size: int, memory_mb: int, is_busy: Callable[[], bool]) -> None:
        """`max_size`: limit of each bucket; `memory_mb`: budget of all; `is_busy`: whether jobs use every processor."""
        #: The size of each bucket; None: as recent demand requires.
        self.fixed_size = fixed_size
        self._max_size = max_size
        self._memory_mb = memory_mb
        self._is_busy = is_busy
        self._buckets: dict[str, PoolBucket] = {}
        self._rest_until = 0.0
        self._changed = asyncio.Event()
        #: Tasks that end clones which have left the pool, and the memory of each clone until then.
        self._end_tasks: dict[asyncio.Task[None], float] = {}

    @property
    def memory_mb(self) -> float:
        """Return the host memory that all waiting clones use, in MiB."""
        return sum(clone.memory_mb for bucket in self._buckets.values() for clone in bucket.clones)

    def counts(self) -> dict[str, int]:
        """Return the number of waiting clones by bucket."""
        return {name: len(bucket.clones) for name, bucket in self._buckets.items()}

    def record_demand(self, name: str, make: Callable[[], Awaitable[WarmClone | None]], *, keep: bool = False) -> None:
        """Record demand for a clone of that bucket; `make` makes more of them.

        With `keep` a pool of fixed size keeps clones of it from now on, even without further demand.
        """
        bucket = self._buckets.setdefault(name, PoolBucket(make))
        bucket.make = make
        bucket.is_permanent = bucket.is_permanent or keep
        bucket.demand_times.append(time.monotonic())
        self._changed.set()

    async def take(self, name: str) -> WarmClone | None:
        """Remove a clone of that bucket and return it, now the caller's; None when none waits."""
        bucket = self._buckets.get(name)
        while bucket is not None and bucket.clones:
            clone = bucket.clones.popleft()
            self._rest_until = time.monotonic() + _REST_SECONDS
            self._changed.set()
            if clone.is_usable:
                return clone
            self._start_end(clone)
        return None

    async def shrink_to(self, memory_mb: float) -> None:
        """End the oldest clones until all use no more than that: a job needs their memory.

        Returns when the memory is free, also that of clones which other tasks are ending.
        """
        while self.memory_mb > max(0.0, memory_mb):
            filled = [bucket for bucket in self._buckets.values() if bucket.clones]
            oldest = min(filled, key=lambda bucket: bucket.clones[0].since)
            self._start_end(oldest.clones.popleft())
        while self._end_tasks and self.memory_mb + sum(self._end_tasks.values()) > max(0.0, memory_mb):
            await asyncio.wait(set(self._end_tasks), return_when=asyncio.FIRST_COMPLETED)

    async def drop(self, name: str) -> None:
        """Remove a bucket and end its clones: their snapshot is not valid any more."""
        bucket = self._buckets.pop(name, None)
        if bucket is not None:
            self._end_bucket(bucket)
            await self._wait_for_ends()

    async def run(self, free_memory_mb: Callable[[], float]) -> None:
        """Fill and shrink the pool until cancelled; a failure is logged, and the pool continues after a pause.

        `free_memory_mb`: memory that jobs leave now.
        """
        try:
            await supervise("pool", lambda: self._maintain(free_memory_mb))
        finally:
            await uninterrupted(self._end_all())

    async def _maintain(self, free_memory_mb: Callable[[], float]) -> None:
        while True:
            self._changed.clear()
            self._end_surplus()
            self._forget_unused_buckets()
            await self.shrink_to(min(self._memory_mb, free_memory_mb()))
            if not await self._make_one(min(self._memory_mb, free_memory_mb())):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_seconds()):
                        await self._changed.wait()

    def _pause_seconds(self) -> float:
        """Return the time until the next check, if nothing changes before."""
        rest_seconds = self._rest_until - time.monotonic()
        return rest_seconds if 0 < rest_seconds < _POLL_SECONDS else _POLL_SECONDS

    def _end_surplus(self) -> None:
        """Remove and end clones that are dead, old or over the target size, oldest first."""
        for bucket in self._buckets.values():
            usable = [clone for clone in bucket.clones if clone.is_usable]
            kept = usable[max(0, len(usable) - self._target_size(bucket)) :]
            surplus = [clone for clone in bucket.clones if clone not in kept]
            bucket.clones = deque(kept)
            for clone in surplus:
                self._start_end(clone)

    def _forget_unused_buckets(self) -> None:
        """Remove empty buckets without demand: jobs may request as many shapes as there are numbers."""
        self._buckets = {
            name: bucket
            for name, bucket in self._buckets.items()
            if bucket.is_permanent or bucket.clones or bucket.target_size(1)
        }

    def _end_bucket(self, bucket: PoolBucket) -> None:
        while bucket.clones:
            self._start_end(bucket.clones.popleft())

    def _start_end(self, clone: WarmClone) -> None:
        """Start to end a clone that has left the pool. No cancellation interrupts it; its failure is logged."""
        task = asyncio.create_task(_end(clone))
        self._end_tasks[task] = clone.memory_mb
        task.add_done_callback(self._end_tasks.pop)

    async def _wait_for_ends(self) -> None:
        while self._end_tasks:
            await asyncio.wait(set(self._end_tasks))

    def _target_size(self, bucket: PoolBucket) -> int:
        if self.fixed_size is None:
            return bucket.target_size(self._max_size)
        return self.fixed_size if bucket.is_permanent or bucket.target_size(1) else 0

    def _next_bucket(self) -> str | None:
        """Return the name of the bucket that lacks the most clones and may be filled now; None without one."""
        now = time.monotonic()
        lacking = [
            (self._target_size(bucket) - len(bucket.clones), name)
            for name, bucket in self._buckets.items()
            if bucket.not_before <= now
        ]
        count, name = max(lacking, default=(0, ""))
        return name if count > 0 else None

    async def _make_one(self, memory_mb: float) -> bool:
        """Make a clone for the bucket that lacks the most; return False when none is to be made now."""
        if self._is_busy() or time.monotonic() < self._rest_until:
            return False
        name = self._next_bucket()
        if name is None:
            return False
        bucket = self._buckets[name]
        expected_mb = max((clone.memory_mb for clone in bucket.clones), default=0.0)
        if self.memory_mb + expected_mb > memory_mb or memory_mb <= 0:
            return False
        clone = await self._make_for(bucket, name)
        if clone is None:
            bucket.not_before = time.monotonic() + _RETRY_SECONDS
        elif self._buckets.get(name) is not bucket or self.memory_mb + clone.memory_mb > memory_mb:
            bucket.not_before = time.monotonic() + _RETRY_SECONDS
            self._start_end(clone)  # it uses more memory than expected, or its bucket was removed meanwhile
            await self._wait_for_ends()
        else:
            clone.death_task = asyncio.create_task(clone.clone.death())
            clone.death_task.add_done_callback(lambda _: self._changed.set())
            bucket.clones.append(clone)
        return True

    async def _make_for(self, bucket: PoolBucket, name: str) -> WarmClone | None:
        try:
            return await bucket.make()
        except Exception as error:  # noqa: BLE001 (a bucket that cannot be filled must not affect the others)
            report_failure("pool_clone", error, bucket=name, retry_seconds=_RETRY_SECONDS)
            return None

    async def _end_all(self) -> None:
        for bucket in self._buckets.values():
            self._end_bucket(bucket)
        self._buckets.clear()
        await self._wait_for_ends()


async def _end(clone: WarmClone) -> None:
    try:
        await clone.end()
    except Exception as error:  # noqa: BLE001 (a clone that does not end cleanly is one line in the log)
        report_failure("pool_clone_end", error, machine=clone.clone.id)
