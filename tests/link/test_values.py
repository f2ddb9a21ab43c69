"""Every value of the link can be carried as JSON and back, except output, which is bytes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import TypeAdapter

from belljar.link.leases import Assignment, ClaimRequest, LeaseKey, NodeIdentity, Renewal, StartReport
from belljar.link.nodes import NodeReport
from belljar.model.job import Artifact, Timings
from belljar.model.resources import NodeLimits
from belljar.model.states import Status
from support.job_queue import MACHINE, ended, queued

NODE = NodeIdentity.new("n1")
LEASE = LeaseKey("job_x", 2, NODE)
NOW = datetime.now(UTC)
VALUES: list[Any] = [
    LEASE,
    ClaimRequest(vcpus=1, memory_mb=2, disk_mb=3, largest=NodeLimits(vcpus=1, memory_mb=2), images=frozenset({"a"})),
    Assignment(lease=LEASE, job=queued(), lease_seconds=30),
    ended(Status.FAILED, exit_code=3, started_at=NOW, kept_artifacts=(Artifact(path="a\n", size_bytes=1),)),
    Renewal(lost=frozenset({LEASE}), cancelled=frozenset(), lease_seconds=30),
    StartReport(started_at=NOW, machine=MACHINE, timings=Timings()),
    NodeReport(
        hostname="h",
        version="1",
        started_at=NOW,
        vcpus=1,
        memory_mb=2,
        largest_memory_mb=2,
        vcpus_free=1,
        memory_free_mb=2,
        running_jobs=0,
    ),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_survives_json(value: Any) -> None:
    adapter = TypeAdapter(type(value))
    assert adapter.validate_json(adapter.dump_json(value)) == value


def test_each_process_of_a_node_has_an_identity_of_its_own() -> None:
    assert NodeIdentity.new("n1") != NodeIdentity.new("n1")
