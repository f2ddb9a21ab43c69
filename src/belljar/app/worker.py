"""A worker: beside the API in one process, or in a process of its own on the same data folder."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from belljar.control.api.file_descriptors import raise_descriptor_limit
from belljar.control.api.services import Services, open_services
from belljar.control.queue.queue import Queue
from belljar.node.machines.selector import HypervisorSelector
from belljar.node.worker.capacity import Capacity
from belljar.node.worker.context import WorkerContext
from belljar.node.worker.node_name import node_name
from belljar.node.worker.provision import open_provisioner
from belljar.node.worker.warm_ups import WarmUps
from belljar.node.worker.worker import Worker
from belljar.settings import Settings
from belljar.settings.secrets import remove_key_from_environment
from belljar.system.core_dumps import forbid_core_dumps
from belljar.system.tracing import tracing


async def work(settings: Settings, *, on_ready: Callable[[str], None], stop: asyncio.Event) -> None:
    """Run a worker until `stop` is set. `on_ready` gets the node's name. Raises HostError, DataFolderError."""
    raise_descriptor_limit()
    forbid_core_dumps()
    remove_key_from_environment()
    with contextlib.ExitStack() as stack:
        stack.enter_context(tracing(settings.tracing_endpoint, settings.tracing_sample_ratio))
        name = stack.enter_context(node_name(settings.data_dir))
        if settings.worker_metrics is not None:
            from belljar.system.exposition import serving_metrics

            stack.enter_context(serving_metrics(settings.worker_metrics))
        async with open_services(settings) as services:
            queue = open_queue(services)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(queue.run()), group.create_task(open_worker(services, queue, name).run())]
                on_ready(name)
                await stop.wait()
                for task in tasks:
                    task.cancel()


def open_queue(services: Services) -> Queue:
    """Return the queue over a process's services."""
    return Queue(
        settings=services.settings,
        claims=services.claims,
        nodes=services.nodes,
        script_disks=services.scripts.disks,
        images=services.images,
        blobs=services.blobs,
        changes=services.changes,
        secrets=services.secrets,
        flows=services.flows,
        usage=services.usage_series,
    )


def open_worker(services: Services, queue: Queue, name: str, *, with_sandboxes: bool = False) -> Worker:
    """Return the worker of this node, which reaches the control plane through the queue's link.

    `with_sandboxes`: whether it takes sandboxes, whose machines only callers in its own process can reach.
    """
    capacity = Capacity.of_host(services.settings)
    capacity.disk = services.disk
    context = WorkerContext(
        settings=services.settings,
        link=queue.link,
        images=services.images,
        hypervisor=HypervisorSelector(services.settings).hypervisor,
        provisioner=open_provisioner(services.settings, capacity),
        warm_ups=WarmUps(services.settings),
        sandbox_link=services.sandbox_queue.link if with_sandboxes else None,
    )
    return Worker(context, name, capacity)
