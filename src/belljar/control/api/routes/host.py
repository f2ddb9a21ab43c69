"""/v1/images, /v1/nodes, health and metrics: what there is to run on."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from belljar import __version__
from belljar.control.api.dependencies import Admin, Caller, ServicesDep
from belljar.control.api.problems import problem
from belljar.control.store.maintenance import SqlMaintenance
from belljar.images.catalog import summary
from belljar.model.errors import DiskFull, HostError
from belljar.model.states import Status
from belljar.system.counters import DESCRIPTIONS, all_counts
from belljar.system.disk_space import DiskSpace
from belljar.system.maintenance import ServiceRecord

router = APIRouter(tags=["host"])


@router.get("/v1/images")
async def list_images(services: ServicesDep, key: Caller) -> dict[str, Any]:
    """The images that are built here: languages and versions, size, the digest of every part.

    For admin keys, with the snapshots that nodes have of them.
    """
    nodes = await services.nodes.list() if key.admin else []
    snapshots = [{"node": node.id, **each} for node in nodes for each in node.snapshots]
    return {"images": [summary(image, snapshots) for image in services.images.list()]}


@router.get("/v1/nodes")
async def list_nodes(services: ServicesDep, _admin: Admin) -> dict[str, Any]:
    """The workers, what they have and what of it is free. For admin keys."""
    silence = services.node_silence_seconds
    return {"nodes": [node.public(silence) for node in await services.nodes.list()]}


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok", "version": __version__}


@router.get("/readyz", response_model=dict[str, str])
async def readyz(services: ServicesDep) -> dict[str, str] | Response:
    """The database answers, a worker is there, and there is disk for new work. 503 otherwise."""
    if not await services.nodes.largest(services.node_silence_seconds):
        raise HostError("no worker has been heard of lately; is one running?")
    short = services.disk.low()
    if short is not None:
        detail = f"too little disk space is left for new work: {short.sentence()}"
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, DiskFull.code, detail)
    return {"status": "ok"}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(services: ServicesDep, _admin: Admin) -> Response:
    """For Prometheus, with an admin key: it counts the jobs of all projects."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    jobs = Gauge("belljar_jobs", "Jobs by status.", ["status"], registry=registry)
    counts = await services.job_store.counts()
    for status in Status:
        jobs.labels(status).set(counts.get(status, 0))
    free = Gauge("belljar_node_free_memory_mb", "Memory of the largest job that fits now.", ["node"], registry=registry)
    running = Gauge("belljar_node_running_jobs", "Jobs that a node holds.", ["node"], registry=registry)
    waiting = Gauge("belljar_node_waiting_clones", "Clones that wait for jobs.", ["node"], registry=registry)
    for node in await services.nodes.list():
        waiting.labels(node.id).set(node.waiting_clones)
        free.labels(node.id).set(node.memory_free_mb)
        running.labels(node.id).set(node.running_jobs)
    _add_disk(registry, services.disk)
    _add_maintenance(registry, await SqlMaintenance(services.database).all())
    _add_counters(registry)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _add_counters(registry: CollectorRegistry) -> None:
    """What this process has counted since its start; a worker that runs alone has no counters here."""
    for name, counts in all_counts().items():
        labels = [label for label, _ in next(iter(counts), ())]
        counter = Counter(name, DESCRIPTIONS[name], labels, registry=registry)
        for values, number in counts.items():
            (counter.labels(**dict(values)) if values else counter).inc(number)


def _add_disk(registry: CollectorRegistry, disk: DiskSpace) -> None:
    """What is left of the file systems that this process writes to."""
    low = Gauge("belljar_disk_low", "1 while no new work is taken for want of disk space.", registry=registry)
    low.set(disk.low() is not None)
    names = {
        "free_bytes": "Free disk.",
        "total_bytes": "Size of the disk.",
        "reserve_bytes": "Free disk below which no new work is taken.",
        "free_inodes": "Files that can still be made.",
        "reserve_inodes": "Number of those below which no new work is taken.",
    }
    with contextlib.suppress(OSError):  # a file system that does not answer
        found = disk.measure()
        for name, text in names.items():
            gauge = Gauge(f"belljar_disk_{name}", text, ["folder"], registry=registry)
            for space in found:
                gauge.labels(space.folder.name).set(getattr(space, name))


def _add_maintenance(registry: CollectorRegistry, records: Mapping[str, ServiceRecord]) -> None:
    """What was removed since this database was made, whichever process did it."""
    removed = Counter("belljar_maintenance_removed", "Things removed.", ["service"], registry=registry)
    size = Counter("belljar_maintenance_removed_bytes", "Bytes of what was removed.", ["service"], registry=registry)
    failures = Counter("belljar_maintenance_failures", "Runs that failed.", ["service"], registry=registry)
    text = "When the service last ran without a failure."
    success = Gauge("belljar_maintenance_last_success_timestamp_seconds", text, ["service"], registry=registry)
    for name, record in records.items():
        removed.labels(name).inc(record.removed_count)
        size.labels(name).inc(record.removed_bytes)
        failures.labels(name).inc(record.failures)
        if record.last_success_at is not None:
            success.labels(name).set(record.last_success_at.timestamp())
