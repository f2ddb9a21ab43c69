# ruff: noqa: S608 (statements of constants)
"""Triggers that count sandboxes with the jobs of their projects: vCPUs that nodes hold, and what machines used.

A sandbox is held from its claim until its lease is given up; a paused one has no machine and is not held. What it used
is counted like that of a job (counting.py): from its claim, or its last metering, until the next, never beyond its
lease. The names of its columns are those of `jobs` except `node`, which is the job's `worker`.
"""

from __future__ import annotations

from belljar.control.store.counting import NOW, used


def held(row: str) -> str:
    """Return the condition that a node holds the sandbox of this row."""
    return f"({row}.lease_until IS NOT NULL AND {row}.status <> 'paused')"


_HELD_HERE = (
    "INSERT INTO project_counters (project, held_vcpus, waiting_since) VALUES (new.project, new.vcpus, 0) "
    "ON CONFLICT (project) DO UPDATE SET held_vcpus = held_vcpus + excluded.held_vcpus; "
    "INSERT INTO node_counters (worker, project, held_vcpus, changed_at) "
    f"VALUES (new.node, new.project, new.vcpus, {NOW}) "
    "ON CONFLICT (worker, project) DO UPDATE SET held_vcpus = held_vcpus + excluded.held_vcpus, "
    "changed_at = excluded.changed_at;"
)
_RELEASED_HERE = (
    "UPDATE project_counters SET held_vcpus = held_vcpus - old.vcpus WHERE project = old.project; "
    f"UPDATE node_counters SET held_vcpus = held_vcpus - old.vcpus, changed_at = {NOW} "
    "WHERE worker = old.node AND project = old.project;"
)

SANDBOX_TRIGGERS = (
    "CREATE TRIGGER sandbox_counters_held AFTER UPDATE OF lease_until, status ON sandboxes "
    f"WHEN {held('new')} AND NOT {held('old')} BEGIN {_HELD_HERE} END",
    "CREATE TRIGGER sandbox_counters_released AFTER UPDATE OF lease_until, status ON sandboxes "
    f"WHEN {held('old')} AND NOT {held('new')} BEGIN {_RELEASED_HERE} {used(NOW)} END",
    f"CREATE TRIGGER sandbox_counters_gone AFTER DELETE ON sandboxes WHEN {held('old')} BEGIN {_RELEASED_HERE} END",
    "CREATE TRIGGER sandbox_usage_metered AFTER UPDATE OF metered_until ON sandboxes "
    f"WHEN {held('old')} AND {held('new')} AND old.metered_until IS NOT NULL BEGIN {used('new.metered_until')} END",
)
