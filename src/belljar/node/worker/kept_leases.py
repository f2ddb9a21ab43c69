"""Leases that a node holds, of jobs or of sandboxes: renewed in time, and what was lost is stopped."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterator
from typing import Generic, Protocol, TypeVar

from belljar.node.worker.lease import Lease
from belljar.system.background import report_failure


class Held(Protocol):
    """What is held under a lease."""

    @property
    def lease(self) -> Lease: ...

    def lose_lease(self) -> None:
        """Stop what is done under the lease."""
        ...


KeyT = TypeVar("KeyT", bound=Hashable)
KeyT_co = TypeVar("KeyT_co", bound=Hashable, covariant=True)
HeldT = TypeVar("HeldT", bound=Held)


class Answer(Protocol[KeyT_co]):
    """The control plane's answer to a renewal."""

    @property
    def lost(self) -> Collection[KeyT_co]: ...

    @property
    def lease_seconds(self) -> float: ...


AnswerT = TypeVar("AnswerT", bound=Answer[Hashable])


class KeptLeases(ABC, Generic[KeyT, HeldT, AnswerT]):
    """Keeps the leases of what is held. A renewal is due every `interval_seconds`."""

    #: The name of the renewal in the log.
    task: str

    def __init__(self, lease_seconds: float) -> None:
        self.held: dict[KeyT, HeldT] = {}
        self.interval_seconds = lease_seconds / 3
        #: Set while anything is held.
        self.any = asyncio.Event()

    def __len__(self) -> int:
        return len(self.held)

    def __iter__(self) -> Iterator[HeldT]:
        return iter(self.held.values())

    @abstractmethod
    async def request(self, keys: list[KeyT]) -> AnswerT:
        """Ask the control plane to renew these leases."""

    @abstractmethod
    def pass_on(self, key: KeyT, answer: AnswerT, requested_at: float) -> None:
        """Pass on what else the answer, to a request of that time of the loop, says of a lease that was renewed."""

    def keep_lease(self, key: KeyT, held: HeldT) -> None:
        """Renew this lease from now on."""
        self.held[key] = held
        self.any.set()

    def drop_lease(self, key: KeyT) -> None:
        """Renew this lease no more."""
        del self.held[key]
        if not self.held:
            self.any.clear()

    async def keep(self) -> None:
        """Renew the leases at intervals, until cancelled: sooner after a failure."""
        is_renewed = True
        while True:
            await asyncio.sleep(self.interval_seconds if is_renewed else self.interval_seconds / 5)
            is_renewed = await self.renew()

    async def renew(self) -> bool:
        """Renew every lease, and end lost ones; return whether the control plane answered."""
        renewing = {key: held for key, held in self.held.items() if held.lease.lost is None}
        if not renewing:
            return True
        requested_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self.interval_seconds):
                answer = await self.request(list(renewing))
        except Exception as error:  # noqa: BLE001 (each lease has its own clock, and this is tried again before that)
            report_failure(self.task, error)
            return False
        for key, held in renewing.items():
            if key in answer.lost:
                held.lose_lease()
                continue
            held.lease.renewed(requested_at, answer.lease_seconds)
            self.pass_on(key, answer, requested_at)
        return True
