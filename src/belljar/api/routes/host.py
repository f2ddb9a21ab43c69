"""/v1/images, /v1/nodes, health and metrics: what there is to run on."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from belljar import __version__
from belljar.api.asked import Admin, Asked, Caller
from belljar.counters import DESCRIPTIONS, all_counts
from belljar.errors import HostError
from belljar.images.catalog import summary
from belljar.jobs.states import Status

router = APIRouter(tags=["host"])


@router.get("/v1/images")
async def list_images(services: Asked, key: Caller) -> dict[str, Any]:
    """The images that are built here: languages and versions, size, the digest of every part.

    For admin keys, with the snapshots that nodes have of them.
    """
    nodes = await services.nodes.list() if key.admin else []
    snapshots = [{"node": node.id, **each} for node in nodes for each in node.snapshots]
    return {"images": [summary(image, snapshots) for image in services.images.list()]}


@router.get("/v1/nodes")
async def list_nodes(services: Asked, _admin: Admin) -> dict[str, Any]:
    """The workers, what they have and what of it is free. For admin keys."""
    silence = services.node_silence_seconds
    return {"nodes": [node.public(silence) for node in await services.nodes.list()]}


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok", "version": __version__}


@router.get("/readyz")
async def readyz(services: Asked) -> dict[str, str]:
    """The database answers and a worker is there. 503 otherwise."""
    if not await services.nodes.largest(services.node_silence_seconds):
        raise HostError("no worker has been heard of lately; is one running?")
    return {"status": "ok"}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(services: Asked, _admin: Admin) -> Response:
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
    _add_counters(registry)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _add_counters(registry: CollectorRegistry) -> None:
    """What this process has counted since its start; a worker that runs alone has no counters here."""
    for name, counts in all_counts().items():
        labels = [label for label, _ in next(iter(counts), ())]
        counter = Counter(name, DESCRIPTIONS[name], labels, registry=registry)
        for values, number in counts.items():
            (counter.labels(**dict(values)) if values else counter).inc(number)
