"""The warm pool: clones that wait for jobs of their image and shape. Each is given away once, or ended.

The target size of each bucket follows the rate of recent demand and the time to make a clone (`auto`), or is a number
(`fixed`). A budget, and the memory that jobs leave, bound the memory of all clones; when it is short, each bucket keeps
the same part of its target. Clones are made only while a processor is to spare: the pool must never slow down a running
job.

Every method may be called while another call is suspended. So a clone is removed from the pool before anything is
awaited; the task that removed it owns it, and gives it away or ends it. No loop suspends while it iterates over the
pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable

from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.provision.demand import Claim, share_memory
from belljar.node.machines.provision.memory_limit import MemoryLimit
from belljar.node.machines.provision.warm_clone import PoolBucket, WarmClone
from belljar.system.background import report_failure, supervise
from belljar.system.counters import increment

_POLL_SECONDS = 1.0
#: The same while clones are missing, but no processor is to spare.
_BUSY_POLL_SECONDS = 0.1
#: A clone was taken for a job, which the start of a hypervisor would slow down: none is started for this long, or until
#: the job's machine ends and a moment after. An empty bucket does not rest: its next job would start one itself.
_REST_SECONDS = 0.25
_REST_AFTER_END_SECONDS = 0.03
#: Clones over the target wait this long for jobs after the last one, because making them took processor time.
_SURPLUS_SECONDS = 20.0
#: Jobs may request as many shapes as there are numbers; each check of the pool looks at every bucket.
_MAX_BUCKETS = 64
#: Clones that are made at once, however many processors there are: one event loop starts them all.
_MAX_AT_ONCE = 8


class WarmPool:
    """Waiting clones in buckets. `run` keeps it filled until it is cancelled; then all clones are ended."""

    def __init__(
        self,
        *,
        fixed_size: int | None,
        max_size: int,
        memory_mb: int,
        has_spare_processor: Callable[[int], bool],
    ) -> None:
        """`max_size`: limit of each bucket; `memory_mb`: budget of all.

        `has_spare_processor`: whether jobs leave a processor beside that many clones that are being made.
        """
        #: The size of each bucket; None: as recent demand requires.
        self.fixed_size = fixed_size
        self._max_size = max_size
        self._memory_mb = memory_mb
        self._has_spare_processor = has_spare_processor
        self._limit = MemoryLimit(memory_mb, lambda: math.inf)
        self._buckets: dict[str, PoolBucket] = {}
        #: Until when the pool rests for each clone that was taken lately.
        self._rests: dict[int, float] = {}
        self._changed = asyncio.Event()
        #: Tasks that make clones, and the memory that each clone is expected to use.
        self._make_tasks: dict[asyncio.Task[None], float] = {}
        #: Tasks that end clones which have left the pool, and the memory of each clone until then.
        self._end_tasks: dict[asyncio.Task[None], float] = {}

    @property
    def memory_mb(self) -> float:
        """Return the host memory that all waiting clones use, in MiB."""
        return sum(clone.memory_mb for bucket in self._buckets.values() for clone in bucket.clones)

    @property
    def _reserved_mb(self) -> float:
        """Return the memory of all clones: those that wait, are being made, or are being ended."""
        return self.memory_mb + sum(self._make_tasks.values()) + sum(self._end_tasks.values())

    def counts(self) -> dict[str, int]:
        """Return the number of waiting clones by bucket."""
        return {name: len(bucket.clones) for name, bucket in self._buckets.items()}

    def record_demand(self, name: str, make: Callable[[], Awaitable[WarmClone | None]], *, keep: bool = False) -> None:
        """Record demand for a clone of that bucket; `make` makes more of them.

        With `keep` a pool of fixed size keeps clones of it from now on, even without further demand. Without effect
        while as many other buckets have clones as there may be buckets.
        """
        if name not in self._buckets and not self._has_room_for_bucket():
            return
        bucket = self._buckets.setdefault(name, PoolBucket(make))
        bucket.make = make
        bucket.is_permanent = bucket.is_permanent or keep
        bucket.demand.record(time.monotonic(), self._max_size)
        self._changed.set()

    def _has_room_for_bucket(self) -> bool:
        """Return whether there may be one more bucket; forget the one that was unused for longest, if necessary."""
        if len(self._buckets) < _MAX_BUCKETS:
            return True
        unused = {name: each for name, each in self._buckets.items() if not (each.is_permanent or each.count)}
        if not unused:
            return False
        del self._buckets[min(unused, key=lambda name: unused[name].demand.last_at)]
        return True

    async def take(self, name: str) -> WarmClone | None:
        """Remove a clone of that bucket and return it, now the caller's; None when none waits."""
        bucket = self._buckets.get(name)
        while bucket is not None and bucket.clones:
            clone = bucket.clones.popleft()
            self._changed.set()
            if clone.is_usable:
                self._rest_for(clone)
                return clone
            self._start_end(clone)
        return None

    async def shrink_to(self, memory_mb: float) -> None:
        """End clones until all use no more than that: a job needs their memory.

        The next is the oldest clone of the bucket that has the largest part of its target. Returns when the memory is
        free, also that of clones which other tasks are ending.
        """
        while self.memory_mb > max(0.0, memory_mb):
            fullest = max((each for each in self._buckets.values() if each.clones), key=self._eviction_rank)
            self._start_end(fullest.clones.popleft())
        while self._end_tasks and self.memory_mb + sum(self._end_tasks.values()) > max(0.0, memory_mb):
            await asyncio.wait(set(self._end_tasks), return_when=asyncio.FIRST_COMPLETED)

    def retry(self, name: str) -> None:
        """Fill that bucket without a further pause: what its clones need is there now."""
        bucket = self._buckets.get(name)
        if bucket is not None:
            bucket.not_before = 0.0
            bucket.pauses.reset()
            self._changed.set()

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
        self._limit = MemoryLimit(self._memory_mb, free_memory_mb)
        try:
            await supervise("pool", self._maintain)
        finally:
            await uninterrupted(self._end_all())

    async def _maintain(self) -> None:
        async with asyncio.TaskGroup() as makers:
            while True:
                self._changed.clear()
                self._end_surplus()
                self._make_room()
                self._forget_unused_buckets()
                await self.shrink_to(self._limit.keep_mb())
                name = self._next_bucket()
                if name is not None and self._has_spare_processor(len(self._make_tasks)):
                    self._start_make(makers, name)
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_seconds(is_missing=name is not None)):
                        await self._changed.wait()

    def _pause_seconds(self, *, is_missing: bool) -> float | None:
        """Return the time until the next check, if nothing changes before; None: there is nothing to check."""
        if not self._buckets:
            return None
        if is_missing:
            return _BUSY_POLL_SECONDS
        rest_seconds = max(self._rests.values(), default=0.0) - time.monotonic()
        return rest_seconds if 0 < rest_seconds < _POLL_SECONDS else _POLL_SECONDS

    def _rest_for(self, clone: WarmClone) -> None:
        """Rest while the job of this clone begins."""

        def end() -> None:
            if key in self._rests:
                self._rests[key] = min(self._rests[key], time.monotonic() + _REST_AFTER_END_SECONDS)
                self._changed.set()

        key = id(clone)
        self._rests[key] = time.monotonic() + _REST_SECONDS
        clone.stack.callback(end)

    def _is_resting(self, now: float) -> bool:
        self._rests = {key: until for key, until in self._rests.items() if until > now}
        return bool(self._rests)

    def _end_surplus(self) -> None:
        """Remove and end clones that are dead, old or over the target size, oldest first."""
        now = time.monotonic()
        for bucket in self._buckets.values():
            target = self._target_size(bucket)
            in_demand = target > 0 and bucket.demand.is_recent(now, _SURPLUS_SECONDS)
            for clone in bucket.remove_unusable(keep=max(target, len(bucket.clones) if in_demand else 0)):
                self._start_end(clone)

    def _make_room(self) -> None:
        """End a clone of the bucket furthest over its share of the memory, if another bucket lacks that memory."""
        now = time.monotonic()
        fill_mb = self._limit.fill_mb(now)
        shares = self._shares(fill_mb)
        free_mb = fill_mb - self._reserved_mb
        is_missing = any(
            bucket.count < shares[name] and bucket.not_before <= now and (bucket.clone_mb or 0.0) > free_mb
            for name, bucket in self._buckets.items()
        )
        over = [(len(bucket.clones) - shares[name], name) for name, bucket in self._buckets.items() if bucket.clones]
        surplus, name = max(over, default=(0, ""))
        if is_missing and surplus > 0 and not self._end_tasks:
            self._start_end(self._buckets[name].clones.popleft())

    def _forget_unused_buckets(self) -> None:
        """Remove empty buckets without demand: jobs may request as many shapes as there are numbers."""
        now = time.monotonic()
        self._buckets = {
            name: bucket
            for name, bucket in self._buckets.items()
            if bucket.is_permanent or bucket.count or bucket.demand.is_recent(now)
        }

    def _end_bucket(self, bucket: PoolBucket) -> None:
        while bucket.clones:
            self._start_end(bucket.clones.popleft())

    def _start_end(self, clone: WarmClone) -> None:
        """Start to end a clone that has left the pool. No cancellation interrupts it; its failure is logged."""
        increment("belljar_evictions", kind="clone")
        task = asyncio.create_task(_end(clone))
        self._end_tasks[task] = clone.memory_mb
        task.add_done_callback(self._handle_end)

    def _handle_end(self, task: asyncio.Task[None]) -> None:
        del self._end_tasks[task]
        self._changed.set()

    async def _wait_for_ends(self) -> None:
        while self._end_tasks:
            await asyncio.wait(set(self._end_tasks))

    def _target_size(self, bucket: PoolBucket) -> int:
        now = time.monotonic()
        if self.fixed_size is None:
            return bucket.demand.target_size(now, self._max_size)
        return self.fixed_size if bucket.is_permanent or bucket.demand.is_recent(now) else 0

    def _shares(self, memory_mb: float) -> dict[str, int]:
        """Return how many clones each bucket may have within that memory."""
        return share_memory(
            {name: Claim(self._target_size(each), each.clone_mb or 0.0) for name, each in self._buckets.items()},
            memory_mb,
        )

    def _eviction_rank(self, bucket: PoolBucket) -> tuple[float, float]:
        """Return a number that is larger for a bucket nearer to its target; of equals, for one with an older clone."""
        target = self._target_size(bucket)
        return len(bucket.clones) / target if target else math.inf, -bucket.clones[0].since

    def _next_bucket(self) -> str | None:
        """Return the bucket to be filled now: that with the smallest part of its share; None without one."""
        now = time.monotonic()
        fill_mb = self._limit.fill_mb(now)
        shares = self._shares(fill_mb)
        is_resting = self._is_resting(now)
        missing = [
            (bucket.count / shares[name], name)
            for name, bucket in self._buckets.items()
            if bucket.count < shares[name]
            and bucket.not_before <= now
            and not (bucket.clones and is_resting)
            and not (bucket.making and bucket.clone_mb is None)  # the first tells how much memory each uses
            and self._reserved_mb + (bucket.clone_mb or 0.0) <= fill_mb
        ]
        return min(missing)[1] if missing and fill_mb > 0 and len(self._make_tasks) < _MAX_AT_ONCE else None

    def _start_make(self, makers: asyncio.TaskGroup, name: str) -> None:
        bucket = self._buckets[name]
        bucket.making += 1
        task = makers.create_task(self._make(bucket, name), name=f"pool clone {name}")
        self._make_tasks[task] = bucket.clone_mb or 0.0
        task.add_done_callback(lambda done: self._handle_made(done, bucket))

    def _handle_made(self, task: asyncio.Task[None], bucket: PoolBucket) -> None:
        del self._make_tasks[task]
        bucket.making -= 1
        self._changed.set()

    async def _make(self, bucket: PoolBucket, name: str) -> None:
        """Make a clone and put it into its bucket, unless memory or its bucket are gone by then."""
        started = time.monotonic()
        try:
            clone = await bucket.make()
        except Exception as error:  # noqa: BLE001 (a bucket that cannot be filled must not affect the others)
            report_failure("pool_clone", error, bucket=name, retry_seconds=bucket.pause())
            return
        if clone is None:
            bucket.pause()
            return
        bucket.demand.record_refill(time.monotonic() - started)
        bucket.clone_mb = max(bucket.clone_mb or 0.0, clone.memory_mb)
        if self._buckets.get(name) is not bucket or self.memory_mb + clone.memory_mb > self._limit.keep_mb():
            bucket.pause()
            self._start_end(clone)
            return
        bucket.pauses.reset()
        clone.death_task = asyncio.create_task(clone.clone.death())
        clone.death_task.add_done_callback(lambda _: self._changed.set())
        bucket.clones.append(clone)

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
