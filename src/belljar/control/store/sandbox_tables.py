"""The tables of sandboxes, beside those of schema.py."""

from __future__ import annotations

from sqlalchemy import DDL, JSON, BigInteger, Column, Index, Integer, String, Table, UniqueConstraint, event, text

from belljar.control.store.metadata import UtcTime, metadata
from belljar.control.store.sandbox_counting import SANDBOX_TRIGGERS

# The conditions of the partial indexes. A query uses such an index only with the same text: no bound values.
LEASED = text("lease_until IS NOT NULL")
WAITING = text("status IN ('creating', 'resuming') AND lease_until IS NULL")
LIVE = text("ended_at IS NULL")
ENDED = text("ended_at IS NOT NULL")
FROZEN = text("frozen_id IS NOT NULL AND ended_at IS NULL")

sandboxes = Table(
    "sandboxes",
    metadata,
    Column("id", String, primary_key=True),
    Column("project", String, nullable=False),
    Column("status", String, nullable=False),
    Column("vcpus", Integer, nullable=False),
    Column("memory_mb", Integer, nullable=False),
    #: Size of the scratch disk; 0: none.
    Column("disk_mb", Integer, nullable=False),
    Column("image_digest", String),
    Column("created_at", UtcTime, nullable=False),
    Column("started_at", UtcTime),
    #: The end of its lifetime.
    Column("expires_at", UtcTime, nullable=False),
    Column("paused_at", UtcTime),
    Column("ended_at", UtcTime),
    #: Since when it waits for a node.
    Column("waiting_since", UtcTime),
    #: The node and its process that hold it, or held it last.
    Column("node", String),
    Column("incarnation", String, nullable=False, server_default=text("''")),
    #: Counts its claims.
    Column("fence", Integer, nullable=False),
    #: NULL: no node holds it.
    Column("lease_until", UtcTime),
    #: Until when its use since the last claim is counted in `project_usage`.
    Column("metered_until", UtcTime),
    #: Why its node is to end it.
    Column("end_requested", String),
    Column("idempotency_key", String),
    #: The frozen machine that it is kept in or made from, and the node that has it: only that node can claim it.
    Column("frozen_id", String),
    Column("frozen_node", String),
    #: What was requested; only `public_ports` changes.
    Column("spec", JSON, nullable=False),
    #: The results so far.
    Column("result", JSON, nullable=False),
    UniqueConstraint("project", "idempotency_key"),
    # Renewals and orders read the sandboxes of one node.
    Index("ix_sandboxes_held", "node", "id", sqlite_where=LEASED, postgresql_where=LEASED),
    # Claims read those that wait, the oldest first.
    Index("ix_sandboxes_waiting", "id", sqlite_where=WAITING, postgresql_where=WAITING),
    # What a project has now, and what is past its deadline.
    Index("ix_sandboxes_live", "project", "expires_at", sqlite_where=LIVE, postgresql_where=LIVE),
    # Which frozen machines are needed.
    Index("ix_sandboxes_frozen", "frozen_id", sqlite_where=FROZEN, postgresql_where=FROZEN),
    # Lists: the newest first.
    Index("ix_sandboxes_project", "project", "id"),
    Index("ix_sandboxes_status", "project", "status", "id"),
    # Retention.
    Index("ix_sandboxes_ended", "ended_at", sqlite_where=ENDED, postgresql_where=ENDED),
)

sandbox_labels = Table(
    "sandbox_labels",
    metadata,
    Column("sandbox_id", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("value", String, nullable=False),
    Column("project", String, nullable=False),
    Index("ix_sandbox_labels_value", "project", "name", "value", "sandbox_id"),
    Index("ix_sandbox_labels_name", "project", "name", "sandbox_id"),
)

snapshots = Table(
    "sandbox_snapshots",
    metadata,
    Column("id", String, primary_key=True),
    Column("project", String, nullable=False),
    Column("sandbox_id", String, nullable=False),
    Column("node", String, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    #: The spec of the sandbox.
    Column("spec", JSON, nullable=False),
    Index("ix_sandbox_snapshots_project", "project", "id"),
    Index("ix_sandbox_snapshots_created", "created_at"),
)

#: Tokens for the ports of sandboxes that have not ended, by host name.
port_tokens = Table(
    "port_tokens",
    metadata,
    Column("id", String, primary_key=True),
    Column("project", String, nullable=False),
    Column("sandbox_id", String, nullable=False),
    Column("port", Integer, nullable=False),
    Column("secret_sha256", String, nullable=False, unique=True),
    Column("created_at", UtcTime, nullable=False),
    #: None: it is valid until the sandbox ends.
    Column("expires_at", UtcTime),
    Index("ix_port_tokens_sandbox", "sandbox_id", "port", "id"),
    Index("ix_port_tokens_project", "project"),
)

for _trigger in SANDBOX_TRIGGERS:
    event.listen(metadata, "after_create", DDL(_trigger))  # type: ignore[no-untyped-call]
