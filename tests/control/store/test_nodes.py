"""Nodes by their heartbeats."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from belljar.control.store.database import Database
from belljar.control.store.nodes import Node, SqlNodes
from belljar.model.resources import NodeLimits


@pytest.fixture
def nodes(database: Database) -> SqlNodes:
    return SqlNodes(database)


def node(name: str, age_seconds: float = 0, **fields: Any) -> Node:
    now = datetime.now(UTC)
    standard: dict[str, Any] = {
        "vcpus": 4,
        "memory_mb": 1000,
        "largest_memory_mb": 900,
        "vcpus_free": 4,
        "memory_free_mb": 900,
        "running_jobs": 0,
    }
    at = now - timedelta(seconds=age_seconds)
    return Node(id=name, hostname="h", version="1", started_at=now, heartbeat_at=at, **{**standard, **fields})


async def silence(database: Database, name: str, seconds: float) -> None:
    """Make the node's last word so much older."""
    query = text("UPDATE nodes SET heartbeat_at = heartbeat_at - :age WHERE id = :id")
    async with database.write() as connection:
        await connection.execute(query, {"age": int(seconds * 1e6), "id": name})


async def test_the_newest_word_of_a_node_is_what_counts(nodes: SqlNodes) -> None:
    await nodes.heartbeat(node("b", running_jobs=1))
    await nodes.heartbeat(node("a"))
    newest = node("b", running_jobs=2)
    await nodes.heartbeat(newest)
    found = await nodes.list()
    assert [each.id for each in found] == ["a", "b"]
    assert found[1] == newest.model_copy(update={"heartbeat_at": found[1].heartbeat_at})


async def test_a_heartbeat_has_the_databases_time_and_not_the_nodes(nodes: SqlNodes) -> None:
    await nodes.heartbeat(node("a", age_seconds=3600))
    (found,) = await nodes.list()
    assert abs(found.heartbeat_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert await nodes.limits(30) != ()


async def test_the_largest_are_those_of_the_living_each_by_itself(nodes: SqlNodes, database: Database) -> None:
    assert await nodes.limits(30) == ()
    await nodes.heartbeat(node("silent", vcpus=64, largest_memory_mb=64_000))
    await silence(database, "silent", 60)
    assert await nodes.limits(30) == ()
    await nodes.heartbeat(node("wide", vcpus=32, largest_memory_mb=32_000))
    await nodes.heartbeat(node("tall", vcpus=4, largest_memory_mb=60_000))
    assert set(await nodes.limits(30)) == {
        NodeLimits(vcpus=32, memory_mb=32_000),
        NodeLimits(vcpus=4, memory_mb=60_000),
    }


async def test_the_images_of_the_living_are_known_when_all_tell_theirs(nodes: SqlNodes, database: Database) -> None:
    assert await nodes.images(30) is None
    await nodes.heartbeat(node("a", images=("x", "y")))
    await nodes.heartbeat(node("b", images=("z",)))
    assert await nodes.images(30) == {"x", "y", "z"}
    await silence(database, "b", 60)
    assert await nodes.images(30) == {"x", "y"}
    await nodes.heartbeat(node("old"))
    assert await nodes.images(30) is None


async def test_images_that_are_not_there_for_a_moment_are_not_missing(nodes: SqlNodes) -> None:
    """A node whose folder of images is mounted late, or again, tells of none meanwhile."""

    def pass_by(seconds: float) -> None:
        nodes._images_seen_since -= seconds
        nodes._images_seen = {digest: at - seconds for digest, at in nodes._images_seen.items()}

    await nodes.heartbeat(node("a", images=()))
    assert await nodes.images(30, 300) is None
    await nodes.heartbeat(node("a", images=("x",)))
    assert await nodes.images(30, 300) is None
    pass_by(299)
    await nodes.heartbeat(node("a", images=()))
    assert await nodes.images(30, 300) is None
    pass_by(1.5)
    assert await nodes.images(30, 300) == set()
    await nodes.heartbeat(node("a", images=("x",)))
    assert await nodes.images(30, 300) == {"x"}
    pass_by(100)
    await nodes.heartbeat(node("a", images=()))
    assert await nodes.images(30, 300) == {"x"}
    pass_by(201)
    assert await nodes.images(30, 300) == set()


def test_a_silent_node_is_shown_as_such() -> None:
    assert node("a").public(30)["alive"] is True
    assert node("a", age_seconds=31).public(30)["alive"] is False
