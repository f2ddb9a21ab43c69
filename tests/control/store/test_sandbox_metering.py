"""What the machines of sandboxes use is counted for their projects, as long as a node holds them."""

from __future__ import annotations

from datetime import date

import pytest
from sqlalchemy import Connection, text

from belljar.control.store.counters import SqlCounters
from belljar.control.store.database import Database
from belljar.control.store.quotas import SqlQuotas
from belljar.control.store.sandbox_claims import SqlSandboxClaims
from belljar.control.store.sandboxes import SqlSandboxes
from belljar.link.leases import NodeIdentity
from belljar.link.sandboxes import SandboxLease
from belljar.model.quotas import CountedQuota
from belljar.model.sandbox import EndReason
from support.sandboxes import ROOM, end_by, new_sandbox

NODE = NodeIdentity("n1", "first")


@pytest.fixture
def store(database: Database) -> SqlSandboxes:
    return SqlSandboxes(database)


@pytest.fixture
def boxes(database: Database) -> SqlSandboxClaims:
    return SqlSandboxClaims(database)


async def claimed(store: SqlSandboxes, boxes: SqlSandboxClaims, lease_seconds: float = 60) -> SandboxLease:
    await store.insert(new_sandbox(vcpus=3, memory_mb=500))
    sandbox = await boxes.claim(NODE, ROOM, lease_seconds)
    assert sandbox is not None
    return SandboxLease(sandbox.id, sandbox.fence, NODE)


async def set_back(database: Database, seconds: float, *columns: str) -> None:
    """Move times of all sandboxes into the past, unseen by the triggers."""
    changes = ", ".join(f"{column} = {column} - {int(seconds * 1e6)}" for column in columns)
    names = ("sandbox_usage_metered", "sandbox_counters_held", "sandbox_counters_released")

    def write(connection: Connection) -> None:
        query = text("SELECT sql FROM sqlite_master WHERE name = :name")
        triggers = [connection.execute(query, {"name": name}).scalar_one() for name in names]
        for statement in [*(f"DROP TRIGGER {name}" for name in names), f"UPDATE sandboxes SET {changes}", *triggers]:
            connection.exec_driver_sql(statement)

    await database.writing(write)


async def used(database: Database) -> tuple[float, float]:
    days = await SqlQuotas(database).days("mine", 2)
    assert all(isinstance(day.day, date) for day in days)
    return sum(day.vcpu_seconds for day in days), sum(day.memory_mb_seconds for day in days)


async def right(database: Database) -> bool:
    return not await SqlCounters(database).differences("mine")


@pytest.mark.parametrize("end", ["end", "decline", "forget", "meter", "pause"])
async def test_a_sandbox_counts_what_its_machine_used_however_that_ends(
    database: Database, store: SqlSandboxes, boxes: SqlSandboxClaims, end: str
) -> None:
    lease = await claimed(store, boxes)
    assert await right(database)
    await set_back(database, 20, "metered_until")
    if end == "end":
        assert await boxes.end(lease, end_by(EndReason.IDLE))
    elif end == "decline":
        await boxes.decline(lease)
    elif end == "forget":
        await boxes.forget(NodeIdentity("n1", "second"))
    elif end == "pause":
        await database.writing(lambda each: each.execute(text("UPDATE sandboxes SET status = 'paused'")))
        await set_back(database, 500, "metered_until")
        await boxes.meter()  # there is no machine to meter
    else:
        await boxes.meter()
    vcpu_seconds, memory_mb_seconds = await used(database)
    assert 60 <= vcpu_seconds < 60 + 3 * 60
    assert memory_mb_seconds == pytest.approx(vcpu_seconds / 3 * 500)
    assert await right(database)


async def test_what_was_metered_is_not_counted_again_and_nothing_beyond_the_lease(
    database: Database, store: SqlSandboxes, boxes: SqlSandboxClaims
) -> None:
    lease = await claimed(store, boxes, lease_seconds=30)
    await set_back(database, 100, "metered_until", "lease_until")
    for _ in range(3):
        await boxes.meter()
    assert (await used(database))[0] == pytest.approx(3 * 30, abs=0.1)
    assert [each.id for each in await boxes.lose_silent()] == [lease.sandbox_id]
    assert (await used(database))[0] == pytest.approx(3 * 30, abs=0.1)


async def test_a_queued_sandbox_uses_nothing_and_counts_for_the_quotas(
    database: Database, store: SqlSandboxes, boxes: SqlSandboxClaims
) -> None:
    await store.insert(new_sandbox(vcpus=2))
    await boxes.meter()
    assert await used(database) == (0, 0)
    use = (await SqlQuotas(database).use("mine")).used
    assert (use[CountedQuota.SANDBOXES], use[CountedQuota.SANDBOX_VCPUS]) == (1, 2)
    assert (await SqlQuotas(database).use("other")).used[CountedQuota.SANDBOX_VCPUS] == 0


async def test_a_counter_that_somebody_changed_is_corrected(
    database: Database, store: SqlSandboxes, boxes: SqlSandboxClaims
) -> None:
    await claimed(store, boxes)
    await database.writing(lambda each: each.execute(text("UPDATE node_counters SET held_vcpus = 9")))
    counters = SqlCounters(database)
    assert await counters.repair("mine") == {"vcpus_by_worker": ({"n1": 9}, {"n1": 3})}
    assert await right(database)
