"""Why a job waits: the first reason that holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from belljar.control.jobs.waiting import why_waiting
from belljar.control.store.nodes import Node
from support.job_queue import queued

JOB = queued(vcpus=2, memory_mb=512, image_digest="d" * 64)


def node(**values: Any) -> Node:
    standard: dict[str, Any] = {
        "id": "n1",
        "hostname": "secret-host",
        "version": "1",
        "heartbeat_at": datetime.now(UTC),
        "started_at": datetime.now(UTC),
        "vcpus": 4,
        "memory_mb": 4096,
        "largest_memory_mb": 2048,
        "vcpus_free": 4,
        "memory_free_mb": 2048,
        "running_jobs": 0,
        "images": ("d" * 64,),
    }
    return Node(**{**standard, **values})


def reason(*nodes: Node, quota: dict[str, Any] | None = None) -> str:
    found = why_waiting(JOB, nodes, 30, quota)
    assert "secret-host" not in found
    return found


def test_each_reason_says_what_to_do_or_that_it_passes() -> None:
    silent = node(heartbeat_at=datetime.now(UTC) - timedelta(minutes=5))
    assert reason().startswith("no worker is connected")
    assert reason(silent).startswith("no worker is connected")
    assert reason(node(images=()), silent).startswith("no worker has the image python")
    assert "no worker is large enough for 2 vCPU and 512 MB" in reason(node(vcpus=1), node(largest_memory_mb=256))
    assert reason(node(vcpus_free=1)) == "all workers are busy: none has 2 vCPU and 512 MB free"
    assert "turn" in reason(node(), node(images=None))


def test_a_quota_goes_before_what_nodes_have() -> None:
    quota = {"quota": "max_running_jobs", "limit": 3, "used": 3}
    assert reason(node(), quota=quota).startswith("the project runs 3 jobs at a time, its limit")
    assert "quota max_new" in reason(quota={"quota": "max_new", "limit": 1, "used": 1})
