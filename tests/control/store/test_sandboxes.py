"""What callers read and write of sandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from belljar.control.store.jobs import SqlJobs
from belljar.control.store.projects import SqlProjects
from belljar.control.store.sandbox_claims import SqlSandboxClaims
from belljar.control.store.sandboxes import SandboxUse, SqlSandboxes
from belljar.link.leases import NodeIdentity
from belljar.model.errors import ProjectConflict, QuotaExceeded
from belljar.model.sandbox import TRANSITIONS, EndReason, Sandbox, SandboxStatus, may_become
from support.control_plane import ControlPlane, opened_control_plane
from support.sandboxes import ROOM, new_sandbox

NODE = NodeIdentity("n1", "first")


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with opened_control_plane(tmp_path / "data", lease_seconds=30) as control:
        yield control


@pytest.fixture
def store(control: ControlPlane) -> SqlSandboxes:
    return control.sandboxes.store


async def test_it_is_read_as_it_was_stored_by_its_project_alone(store: SqlSandboxes) -> None:
    sandbox = await store.insert(new_sandbox(labels={"a": "1"}, env={"A": "ü"}, egress=("pypi.org",)))
    assert await store.get("mine", sandbox.id) == sandbox == await store.get(None, sandbox.id)
    assert await store.get("other", sandbox.id) is None
    assert sandbox.public()["memory_mb"] == 128 and "request_sha256" not in sandbox.public()


async def test_an_idempotency_key_returns_the_first_one(store: SqlSandboxes) -> None:
    first = await store.insert(new_sandbox(idempotency_key="k"))
    assert await store.insert(new_sandbox(idempotency_key="k")) == first == await store.by_key("mine", "k")
    assert (await store.insert(new_sandbox(project="other", idempotency_key="k"))).id != first.id


async def test_pages_are_in_order_and_filtered(store: SqlSandboxes) -> None:
    made = [await store.insert(new_sandbox(labels={"team": str(number % 2)})) for number in range(5)]
    ids = [each.id for each in reversed(made)]
    page, cursor = await store.list("mine", limit=2)
    rest, end = await store.list("mine", limit=5, cursor=cursor)
    assert [each.id for each in (*page, *rest)] == ids and end is None
    labelled, _ = await store.list("mine", label="team=1")
    assert [each.id for each in labelled] == [made[3].id, made[1].id]
    assert (await store.list("mine", status=SandboxStatus.RUNNING))[0] == []
    assert (await store.list("other"))[0] == []


async def test_a_page_of_large_sandboxes_ends_early(store: SqlSandboxes) -> None:
    made = [await store.insert(new_sandbox(env={"A": "x" * 1024 * 1024})) for _ in range(4)]
    page, cursor = await store.list("mine", limit=4)
    assert 1 <= len(page) < 4 and cursor == page[-1].id
    rest, _ = await store.list("mine", limit=4, cursor=cursor)
    assert [each.id for each in (*page, *rest)] == [each.id for each in reversed(made)][: len(page) + len(rest)]


async def test_a_refused_sandbox_is_not_stored(store: SqlSandboxes) -> None:
    await store.insert(new_sandbox(vcpus=2))

    def check(use: SandboxUse) -> None:
        assert use == SandboxUse(sandboxes=2, vcpus=3, memory_mb=256)
        raise QuotaExceeded("too many")

    with pytest.raises(QuotaExceeded):
        await store.insert(new_sandbox(), check)
    assert (await store.use("mine")).sandboxes == 1


async def test_a_removed_project_gets_no_sandbox_and_those_it_had_end(
    control: ControlPlane, store: SqlSandboxes
) -> None:
    sandbox = await store.insert(new_sandbox(project="shop"))
    projects = SqlProjects(control.database)
    await projects.create("shop")
    await projects.begin_removal("shop")
    with pytest.raises(ProjectConflict, match="being removed"):
        await store.insert(new_sandbox(project="shop"))
    claims = SqlSandboxClaims(control.database)
    assert await claims.claim(NODE, ROOM, 60) is None
    (ended,) = await claims.end_overdue(wait_seconds=60, grace_seconds=60)
    assert ended.id == sandbox.id and _reason(ended) is EndReason.PROJECT


async def test_images_of_sandboxes_that_have_not_ended_are_needed(control: ControlPlane, store: SqlSandboxes) -> None:
    sandbox = await store.insert(new_sandbox(image_digest="abc"))
    assert await SqlJobs(control.database).image_digests() == {"abc"}
    await store.request_end(None, sandbox.id, EndReason.DELETED, "it was deleted")
    assert await SqlJobs(control.database).image_digests() == set()
    assert await store.remove_ended(0, 10) == 1 and await store.get(None, sandbox.id) is None


async def test_a_node_that_does_not_end_it_in_time_loses_it(control: ControlPlane, store: SqlSandboxes) -> None:
    sandbox = await store.insert(new_sandbox(lifetime_seconds=-5))  # the deadline is long past
    fresh = await store.insert(new_sandbox())
    claims = SqlSandboxClaims(control.database)
    assert await claims.claim(NODE, ROOM, 60) == await store.get(None, fresh.id)  # one past its end is never given
    (ended,) = await claims.end_overdue(wait_seconds=60, grace_seconds=60)
    assert ended.id == sandbox.id and _reason(ended) is EndReason.LIFETIME
    await store.extend("mine", fresh.id, -5)
    assert await claims.end_overdue(wait_seconds=60, grace_seconds=60) == []  # its node ends it
    (overdue,) = await claims.end_overdue(wait_seconds=60, grace_seconds=1)
    assert (overdue.id, overdue.status, _reason(overdue)) == (fresh.id, SandboxStatus.ENDED, EndReason.LIFETIME)


def _reason(sandbox: Sandbox) -> EndReason | None:
    return sandbox.end.reason if sandbox.end is not None else None


def test_the_transitions_lead_from_creation_to_an_end_and_no_further() -> None:
    assert set(TRANSITIONS) == set(SandboxStatus)
    for status in SandboxStatus:
        assert not TRANSITIONS[status] if status.terminal else SandboxStatus.ENDED in TRANSITIONS[status]
    assert may_become(SandboxStatus.RUNNING) == {
        SandboxStatus.CREATING,
        SandboxStatus.PAUSING,
        SandboxStatus.RESUMING,
    }
