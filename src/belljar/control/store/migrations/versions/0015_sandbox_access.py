# ruff: noqa: S608 (statements of constants)
"""Sandboxes count for the usage and the counters of projects, and have tokens for their ports."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

_NOW = "(CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000)"
_DAY_US = 86_400_000_000
_MAX_COUNTED_US = 300_000_000


def _held(row: str) -> str:
    return f"({row}.lease_until IS NOT NULL AND {row}.status <> 'paused')"


_HELD_HERE = (
    "INSERT INTO project_counters (project, held_vcpus, waiting_since) VALUES (new.project, new.vcpus, 0) "
    "ON CONFLICT (project) DO UPDATE SET held_vcpus = held_vcpus + excluded.held_vcpus; "
    "INSERT INTO node_counters (worker, project, held_vcpus, changed_at) "
    f"VALUES (new.node, new.project, new.vcpus, {_NOW}) "
    "ON CONFLICT (worker, project) DO UPDATE SET held_vcpus = held_vcpus + excluded.held_vcpus, "
    "changed_at = excluded.changed_at;"
)
_RELEASED_HERE = (
    "UPDATE project_counters SET held_vcpus = held_vcpus - old.vcpus WHERE project = old.project; "
    f"UPDATE node_counters SET held_vcpus = held_vcpus - old.vcpus, changed_at = {_NOW} "
    "WHERE worker = old.node AND project = old.project;"
)


def _used(until: str) -> str:
    end = f"min({until}, coalesce(old.lease_until, {until}), old.metered_until + {_MAX_COUNTED_US})"
    milliseconds = f"max(0, coalesce({end} - old.metered_until, 0)) / 1000"
    return (
        "INSERT INTO project_usage (project, day, vcpu_ms, memory_mb_ms) "
        f"VALUES (old.project, {_NOW} / {_DAY_US}, {milliseconds} * old.vcpus, {milliseconds} * old.memory_mb) "
        "ON CONFLICT (project, day) DO UPDATE SET vcpu_ms = vcpu_ms + excluded.vcpu_ms, "
        "memory_mb_ms = memory_mb_ms + excluded.memory_mb_ms;"
    )


_TRIGGERS = (
    "CREATE TRIGGER sandbox_counters_held AFTER UPDATE OF lease_until, status ON sandboxes "
    f"WHEN {_held('new')} AND NOT {_held('old')} BEGIN {_HELD_HERE} END",
    "CREATE TRIGGER sandbox_counters_released AFTER UPDATE OF lease_until, status ON sandboxes "
    f"WHEN {_held('old')} AND NOT {_held('new')} BEGIN {_RELEASED_HERE} {_used(_NOW)} END",
    f"CREATE TRIGGER sandbox_counters_gone AFTER DELETE ON sandboxes WHEN {_held('old')} BEGIN {_RELEASED_HERE} END",
    "CREATE TRIGGER sandbox_usage_metered AFTER UPDATE OF metered_until ON sandboxes "
    f"WHEN {_held('old')} AND {_held('new')} AND old.metered_until IS NOT NULL BEGIN {_used('new.metered_until')} END",
)
# Sandboxes that an earlier version's node holds.
_FIRST_COUNTS = (
    "INSERT INTO project_counters (project, held_vcpus, waiting_since) "
    "SELECT project, sum(vcpus), 0 FROM sandboxes WHERE lease_until IS NOT NULL GROUP BY project "
    "ON CONFLICT (project) DO UPDATE SET held_vcpus = held_vcpus + excluded.held_vcpus",
    "INSERT INTO node_counters (worker, project, held_vcpus, changed_at) "
    f"SELECT node, project, sum(vcpus), {_NOW} FROM sandboxes WHERE lease_until IS NOT NULL GROUP BY node, project "
    "ON CONFLICT (worker, project) DO UPDATE SET held_vcpus = held_vcpus + excluded.held_vcpus",
)


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("metered_until", sa.BigInteger))
    for name in ("max_sandboxes", "max_sandbox_vcpus"):
        op.add_column("project_quotas", sa.Column(name, sa.BigInteger))
    op.create_table(
        "port_tokens",
        sa.Column("id", sa.String, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("sandbox_id", sa.String, nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("secret_sha256", sa.String, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_port_tokens"),
        sa.UniqueConstraint("secret_sha256", name="uq_port_tokens_secret_sha256"),
    )
    op.create_index("ix_port_tokens_sandbox", "port_tokens", ["sandbox_id", "port", "id"])
    op.create_index("ix_port_tokens_project", "port_tokens", ["project"])
    for statement in _FIRST_COUNTS:
        op.execute(sa.text(statement))
    for trigger in _TRIGGERS:
        op.execute(sa.text(trigger))
