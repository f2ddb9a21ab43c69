"""Nodes by their heartbeats."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from belljar.jobs.resolve import Largest
from belljar.store.database import Database
from belljar.store.nodes import Node, SqlNodes


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


async def test_the_newest_word_of_a_node_is_what_counts(nodes: SqlNodes) -> None:
    await nodes.heartbeat(node("b", running_jobs=1))
    await nodes.heartbeat(node("a"))
    newest = node("b", running_jobs=2)
    await nodes.heartbeat(newest)
    assert [each.id for each in await nodes.list()] == ["a", "b"]
    assert (await nodes.list())[1] == newest


async def test_the_largest_is_that_of_the_living(nodes: SqlNodes) -> None:
    assert await nodes.largest(30) is None
    await nodes.heartbeat(node("silent", age_seconds=60, vcpus=64, largest_memory_mb=64_000))
    assert await nodes.largest(30) is None
    await nodes.heartbeat(node("small", vcpus=2, largest_memory_mb=500))
    await nodes.heartbeat(node("large", vcpus=4, largest_memory_mb=900))
    assert await nodes.largest(30) == Largest(vcpus=4, memory_mb=900)


def test_a_silent_node_is_shown_as_such() -> None:
    assert node("a").public(30)["alive"] is True
    assert node("a", age_seconds=31).public(30)["alive"] is False
