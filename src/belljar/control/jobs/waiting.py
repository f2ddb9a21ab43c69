"""Says why a queued job has not started, in words for its owner: nothing about hosts but whether there is room."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from belljar.control.store.nodes import Node
from belljar.model.job import Job

_QUOTAS = {
    "max_running_jobs": "the project runs {used} jobs at a time, its limit",
    "max_vcpu_seconds_per_day": "the project has used its {limit} vCPU seconds of today",
    "max_memory_mb_seconds_per_day": "the project has used its {limit} MB seconds of memory of today",
}


def why_waiting(job: Job, nodes: Collection[Node], silent_after_seconds: float, quota: Mapping[str, Any] | None) -> str:
    """Return why the job waits. `quota` is the one that holds the project's jobs, if any."""
    if quota is not None:
        text = _QUOTAS.get(quota["quota"], "the project has reached its quota {quota}")
        return text.format_map(quota) + "; a quota is changed by the operator of this server"
    now = datetime.now(UTC)
    living = [node for node in nodes if now - node.heartbeat_at < timedelta(seconds=silent_after_seconds)]
    if not living:
        return "no worker is connected; start one with belljar serve or belljar worker"
    with_image = [node for node in living if node.images is None or job.image_digest in (None, *node.images)]
    if not with_image:
        return f"no worker has the image {job.image} that the job was submitted with; build it there, or submit again"
    needs = job.resources
    fitting = [
        node
        for node in with_image
        if node.vcpus >= needs.vcpus
        and node.largest_memory_mb >= needs.memory_mb
        and (node.largest_disk_mb is None or node.largest_disk_mb >= (needs.disk_mb or 0))
    ]
    shape = f"{needs.vcpus} vCPU and {needs.memory_mb} MB" + (f", {needs.disk_mb} MB disk" if needs.disk_mb else "")
    if not fitting:
        return f"no worker is large enough for {shape}; submit it with less, or add a larger one"
    if any(node.vcpus_free >= needs.vcpus and node.memory_free_mb >= needs.memory_mb for node in fitting):
        return "it is the turn of other jobs, or it starts now"
    return f"all workers are busy: none has {shape} free"
