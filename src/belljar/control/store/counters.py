"""Recounts what the counters of a project say, and corrects them. Triggers keep them (counting.py)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, delete, func, select, union
from sqlalchemy.dialects.sqlite import insert

from belljar.control.store.database import Database
from belljar.control.store.sandbox_tables import LEASED, sandboxes
from belljar.control.store.schema import NOW_US, jobs, node_counters, project_counters, projects, scripts
from belljar.model.sandbox import SandboxStatus
from belljar.model.states import Status

_HELD = (Status.STARTING.value, Status.RUNNING.value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """The counters of one project that equal a count over its rows."""

    queued_jobs: int = 0
    held_jobs: int = 0
    held_vcpus: int = 0
    script_bytes: int = 0
    job_bytes: int = 0
    #: The vCPUs of its jobs and sandboxes on each worker, without workers where it has none.
    vcpus_by_worker: dict[str, int] = field(default_factory=dict)

    def differences(self, other: Counts) -> dict[str, tuple[Any, Any]]:
        """Return the values of both for each counter that differs, by its name."""
        pairs = {each.name: (getattr(self, each.name), getattr(other, each.name)) for each in fields(self)}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


class SqlCounters:
    """The counters of projects, as they are and as they should be."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def projects(self, after: str, limit: int) -> list[str]:
        """Return a page of the names of all projects, in their order, from behind `after`."""
        names = union(select(projects.c.name), select(project_counters.c.project)).subquery()
        query = select(names.c.name).where(names.c.name > after).order_by(names.c.name).limit(limit)
        return await self._database.reading(lambda connection: list(connection.execute(query).scalars()))

    async def differences(self, project: str) -> dict[str, tuple[Any, Any]]:
        """Return the stored and the right value of each wrong counter of the project, in one snapshot of the data."""
        return await self._database.reading(
            lambda connection: stored(connection, project).differences(recounted(connection, project))
        )

    async def repair(self, project: str) -> dict[str, tuple[Any, Any]]:
        """Correct the counters of the project. Return what they were and are, of those that were wrong."""

        def repair(connection: Connection) -> dict[str, tuple[Any, Any]]:
            right = recounted(connection, project)
            differences = stored(connection, project).differences(right)
            if differences:
                _write(connection, project, right)
            return differences

        return await self._database.writing(repair)

    async def remove_idle(self, before: datetime) -> int:
        """Remove the counters of projects on workers where nothing has happened since then. Return their number."""
        idle = and_(node_counters.c.held_vcpus == 0, node_counters.c.changed_at < before)
        if await self._database.reading(lambda connection: connection.execute(_any(idle)).first()) is None:
            return 0
        query = delete(node_counters).where(idle)
        return await self._database.writing(lambda connection: connection.execute(query).rowcount)


def stored(connection: Connection, project: str) -> Counts:
    """Return the counters of the project as they are stored."""
    names = [each.name for each in fields(Counts) if each.name != "vcpus_by_worker"]
    row = connection.execute(select(project_counters).where(project_counters.c.project == project)).one_or_none()
    here = select(node_counters.c.worker, node_counters.c.held_vcpus).where(
        node_counters.c.project == project, node_counters.c.held_vcpus != 0
    )
    values = {} if row is None else {name: row._mapping[name] for name in names}
    return Counts(**values, vcpus_by_worker={row.worker: row.held_vcpus for row in connection.execute(here)})


def recounted(connection: Connection, project: str) -> Counts:
    """Return the counters of the project by a count over its rows: the whole of its part of an index."""
    mine = jobs.c.project == project
    held = and_(mine, jobs.c.status.in_(_HELD))
    queued = select(func.count()).select_from(jobs).where(mine, jobs.c.status == Status.QUEUED.value)
    by_worker = select(jobs.c.worker, func.count(), func.sum(jobs.c.vcpus)).where(held).group_by(jobs.c.worker)
    job_bytes = select(func.coalesce(func.sum(jobs.c.stored_bytes), 0)).where(mine)
    script_bytes = select(func.coalesce(func.sum(scripts.c.size_bytes), 0)).where(scripts.c.project == project)
    workers = connection.execute(by_worker).all()
    vcpus_by_worker = _sandboxes_by_node(connection, project)
    for worker, _, vcpus in workers:
        vcpus_by_worker[worker] = vcpus_by_worker.get(worker, 0) + vcpus
    return Counts(
        queued_jobs=connection.execute(queued).scalar_one(),
        held_jobs=sum(number for _, number, _ in workers),
        held_vcpus=sum(vcpus_by_worker.values()),
        script_bytes=connection.execute(script_bytes).scalar_one(),
        job_bytes=connection.execute(job_bytes).scalar_one(),
        vcpus_by_worker=vcpus_by_worker,
    )


def _sandboxes_by_node(connection: Connection, project: str) -> dict[str, int]:
    """Return the vCPUs of the project's sandboxes that each node holds, as the triggers count them."""
    is_held = (LEASED, sandboxes.c.status != SandboxStatus.PAUSED.value)
    query = (
        select(sandboxes.c.node, func.sum(sandboxes.c.vcpus).label("vcpus"))
        .where(sandboxes.c.project == project, *is_held)
        .group_by(sandboxes.c.node)
    )
    return {row.node: row.vcpus for row in connection.execute(query)}


def _write(connection: Connection, project: str, right: Counts) -> None:
    values = {each.name: getattr(right, each.name) for each in fields(right) if each.name != "vcpus_by_worker"}
    query = insert(project_counters).values(project=project, waiting_since=NOW_US, **values)
    connection.execute(query.on_conflict_do_update(index_elements=["project"], set_=values))
    connection.execute(node_counters.update().where(node_counters.c.project == project).values(held_vcpus=0))
    for worker, vcpus in right.vcpus_by_worker.items():
        here = insert(node_counters).values(worker=worker, project=project, held_vcpus=vcpus, changed_at=NOW_US)
        connection.execute(here.on_conflict_do_update(index_elements=["worker", "project"], set_={"held_vcpus": vcpus}))


def _any(which: Any) -> Any:
    return select(node_counters.c.worker).where(which).limit(1)
