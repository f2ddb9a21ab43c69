"""/metrics, for Prometheus."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from belljar.control.api.dependencies import ServicesDep
from belljar.control.api.rules import require
from belljar.control.projects.scopes import Scope
from belljar.control.quotas.service import QuotaService
from belljar.control.store.maintenance import SqlMaintenance
from belljar.model.states import Status
from belljar.system.counters import DESCRIPTIONS, all_counts
from belljar.system.disk_space import DiskSpace
from belljar.system.maintenance import ServiceRecord

router = APIRouter(tags=["host"])


@router.get("/metrics", response_class=PlainTextResponse, dependencies=[require(Scope.ADMIN)])
async def metrics(services: ServicesDep) -> Response:
    """Return metrics in the format of Prometheus, over all projects. Requires an admin key."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    jobs = Gauge("belljar_jobs", "Jobs by status.", ["status"], registry=registry)
    counts = await services.job_store.counts()
    for status in Status:
        jobs.labels(status).set(counts.get(status, 0))
    free = Gauge("belljar_node_free_memory_mb", "Memory of the largest job that fits now.", ["node"], registry=registry)
    running = Gauge("belljar_node_running_jobs", "Jobs that a node has leased.", ["node"], registry=registry)
    waiting = Gauge("belljar_node_waiting_clones", "Clones in the warm pool.", ["node"], registry=registry)
    for node in await services.nodes.list():
        waiting.labels(node.id).set(node.waiting_clones)
        free.labels(node.id).set(node.memory_free_mb)
        running.labels(node.id).set(node.running_jobs)
    await _add_quotas(registry, services.quotas)
    _add_disk(registry, services.disk)
    _add_maintenance(registry, await SqlMaintenance(services.database).all())
    _add_counters(registry)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


async def _add_quotas(registry: CollectorRegistry, quotas: QuotaService) -> None:
    """Add how many projects have queued jobs and wait for a quota. No project's name is a label: there may be many."""
    queued, at_limit = await quotas.projects_at_limit()
    Gauge("belljar_queued_projects", "Projects with queued jobs.", registry=registry).set(queued)
    text = "Projects whose queued jobs wait because of a quota, by quota."
    waiting = Gauge("belljar_projects_at_quota", text, ["quota"], registry=registry)
    for quota, number in at_limit.items():
        waiting.labels(quota.value).set(number)


def _add_counters(registry: CollectorRegistry) -> None:
    """Add the counters of this process since its start; those of separate workers are not included."""
    for name, counts in all_counts().items():
        labels = [label for label, _ in next(iter(counts), ())]
        counter = Counter(name, DESCRIPTIONS[name], labels, registry=registry)
        for values, number in counts.items():
            (counter.labels(**dict(values)) if values else counter).inc(number)


def _add_disk(registry: CollectorRegistry, disk: DiskSpace) -> None:
    """Add the free space of the file systems that this process writes to."""
    low = Gauge("belljar_disk_low", "1 while new work is refused because of low disk space.", registry=registry)
    low.set(disk.low() is not None)
    names = {
        "free_bytes": "Free disk space.",
        "total_bytes": "Size of the disk.",
        "reserve_bytes": "Free disk space below which new work is refused.",
        "free_inodes": "Free inodes.",
        "reserve_inodes": "Free inodes below which new work is refused.",
    }
    with contextlib.suppress(OSError):  # a file system that does not respond
        spaces = disk.measure()
        for name, text in names.items():
            gauge = Gauge(f"belljar_disk_{name}", text, ["folder"], registry=registry)
            for space in spaces:
                gauge.labels(space.folder.name).set(getattr(space, name))


def _add_maintenance(registry: CollectorRegistry, records: Mapping[str, ServiceRecord]) -> None:
    """Add what maintenance removed since the database was created, in all processes."""
    removed = Counter("belljar_maintenance_removed", "Items that maintenance removed.", ["service"], registry=registry)
    size = Counter(
        "belljar_maintenance_removed_bytes", "Bytes that maintenance removed.", ["service"], registry=registry
    )
    failures = Counter("belljar_maintenance_failures", "Runs that failed.", ["service"], registry=registry)
    text = "Time of the service's last successful run."
    success = Gauge("belljar_maintenance_last_success_timestamp_seconds", text, ["service"], registry=registry)
    for name, record in records.items():
        removed.labels(name).inc(record.removed_count)
        size.labels(name).inc(record.removed_bytes)
        failures.labels(name).inc(record.failures)
        if record.last_success_at is not None:
            success.labels(name).set(record.last_success_at.timestamp())
