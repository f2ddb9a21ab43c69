"""Gauges of the state in the database and of this host's disk, over all projects.

No label names a project, a job or a path: there may be any number of those.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from belljar.control.store.nodes import Node
from belljar.model.quotas import CountedQuota
from belljar.model.sandbox import SandboxStatus
from belljar.model.states import Status
from belljar.system.disk_space import DiskSpace
from belljar.system.maintenance import ServiceRecord

_MIB = 1024 * 1024
_LIVE_SANDBOXES = tuple(status for status in SandboxStatus if not status.terminal)


def gauge(name: str, text: str, value: float) -> Metric:
    """Return a gauge without labels."""
    return GaugeMetricFamily(name, text, value=value)


def labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """Return a gauge with one label."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def jobs(counts: Mapping[Status, int], oldest_queued_seconds: float) -> Iterator[Metric]:
    """Yield the number of jobs, and how long the first of the queue has waited."""
    numbers = {status.value: counts.get(status, 0) for status in Status}
    yield labelled("belljar_jobs", "Jobs by status.", "status", numbers)
    text = "Time since the submission of the oldest queued job; 0: none is queued."
    yield gauge("belljar_queue_oldest_job_seconds", text, oldest_queued_seconds)


def sandboxes(counts: Mapping[SandboxStatus, int]) -> Iterator[Metric]:
    """Yield the number of sandboxes that have not ended."""
    numbers = {status.value: counts.get(status, 0) for status in _LIVE_SANDBOXES}
    yield labelled("belljar_sandboxes", "Sandboxes that have not ended, by status.", "status", numbers)


def nodes(found: Iterable[Node], silent_after_seconds: float) -> Iterator[Metric]:
    """Yield what nodes reported last, those that are silent too."""
    known = list(found)

    def of(name: str, text: str, value: Mapping[str, float]) -> Metric:
        return labelled(f"belljar_node_{name}", text, "node", value)

    info = GaugeMetricFamily(
        "belljar_node_info",
        "Always 1; what the node runs is in the labels.",
        labels=["node", "version", "hypervisor", "accelerator"],
    )
    for each in known:
        info.add_metric([each.id, each.version, each.hypervisor or "", each.accelerator or ""], 1)
    yield info
    alive = {each.id: float(each.is_alive(silent_after_seconds)) for each in known}
    yield of("up", "1 while the node reports in time.", alive)
    text = "Time of the node's last report."
    yield of("heartbeat_timestamp_seconds", text, {each.id: each.heartbeat_at.timestamp() for each in known})
    yield of("vcpus", "vCPUs that the node gives to machines.", {each.id: each.vcpus for each in known})
    yield of("free_vcpus", "vCPUs that no machine has.", {each.id: each.vcpus_free for each in known})
    text = "Memory that the node gives to machines."
    yield of("memory_bytes", text, {each.id: each.memory_mb * _MIB for each in known})
    text = "Memory of the largest job that fits now."
    yield of("free_memory_bytes", text, {each.id: each.memory_free_mb * _MIB for each in known})
    yield of("running_jobs", "Jobs that the node has leased.", {each.id: each.running_jobs for each in known})
    yield of("waiting_clones", "Clones in the warm pool.", {each.id: each.waiting_clones for each in known})
    text = "Memory of the clones in the warm pool."
    yield of("waiting_clones_bytes", text, {each.id: each.waiting_memory_mb * _MIB for each in known})
    yield of("snapshots", "Snapshots on the node's disk.", {each.id: len(each.snapshots) for each in known})


def quotas(queued_projects: int, at_limit: Mapping[CountedQuota, int]) -> Iterator[Metric]:
    """Yield how many projects have queued jobs, and how many of them wait for each quota."""
    yield gauge("belljar_queued_projects", "Projects with queued jobs.", queued_projects)
    text = "Projects whose queued jobs wait because of a quota, by quota."
    yield labelled("belljar_projects_at_quota", text, "quota", {each.value: at_limit[each] for each in at_limit})


def disk(space: DiskSpace) -> Iterator[Metric]:
    """Yield the free space of the file systems that this process writes to."""
    is_low = space.low() is not None
    yield gauge("belljar_disk_low", "1 while new work is refused because of low disk space.", is_low)
    names = {
        "free_bytes": "Free disk space.",
        "total_bytes": "Size of the disk.",
        "reserve_bytes": "Free disk space below which new work is refused.",
        "free_inodes": "Free inodes.",
        "reserve_inodes": "Free inodes below which new work is refused.",
    }
    with contextlib.suppress(OSError):  # a file system that does not respond
        measured = space.measure()
        for name, text in names.items():
            values = {each.folder.name: getattr(each, name) for each in measured}
            yield labelled(f"belljar_disk_{name}", text, "folder", values)


def maintenance(records: Mapping[str, ServiceRecord]) -> Iterator[Metric]:
    """Yield what maintenance removed since the database was created, in all processes."""
    label = ["service"]
    removed = CounterMetricFamily("belljar_maintenance_removed", "Items that maintenance removed.", labels=label)
    text = "Bytes that maintenance removed."
    size = CounterMetricFamily("belljar_maintenance_removed_bytes", text, labels=label)
    failures = CounterMetricFamily("belljar_maintenance_failures", "Runs that failed.", labels=label)
    text = "Time of the service's last successful run."
    success = GaugeMetricFamily("belljar_maintenance_last_success_timestamp_seconds", text, labels=label)
    for name, record in records.items():
        removed.add_metric([name], record.removed_count)
        size.add_metric([name], record.removed_bytes)
        failures.add_metric([name], record.failures)
        if record.last_success_at is not None:
            success.add_metric([name], record.last_success_at.timestamp())
    yield from (removed, size, failures, success)
