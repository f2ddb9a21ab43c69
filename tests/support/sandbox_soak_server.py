"""`belljar serve` whose machines are the agent's processes: the real worker, leases and API, without a hypervisor.

A prefix of the command, `sandbox_soak_server.py AGENT … belljar serve …`. The data folder's file `faults` says what
goes wrong (support/worker_harness_process.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import belljar.app.server as app
from belljar.cli.main import main
from belljar.node.worker.capacity import Capacity
from belljar.node.worker.context import WorkerContext
from belljar.node.worker.worker import Worker
from support.agent_process import ProcessHypervisor
from support.faults import Faulty
from support.worker_harness import QUICK, FolderSupply, NothingToPrepare, register_image
from support.worker_harness_process import FileFaults


def open_worker(services: Any, queue: Any, name: str, **_: Any) -> Worker:
    """Return the worker of this node."""
    data_dir = services.settings.data_dir
    register_image(data_dir)
    faults, hypervisor = FileFaults(data_dir / "faults"), ProcessHypervisor(Path(sys.argv[0]))

    async def choose(_: Any) -> Any:
        return hypervisor

    context: dict[str, Any] = {
        "settings": services.settings,
        "link": queue.link,
        "images": services.images,
        "hypervisor": choose,
        "provisioner": FolderSupply(data_dir / "machines", faults),
        "warm_ups": NothingToPrepare(data_dir),
        "retry_times": QUICK,
        "sandbox_link": Faulty(services.sandbox_queue.link, "sandbox_link", faults),
    }
    return Worker(WorkerContext(**context), name, Capacity(vcpus=64, memory_mb=1 << 20))


if __name__ == "__main__":
    setattr(app, "open_worker", open_worker)  # noqa: B010
    agent = sys.argv[1]
    sys.argv[:] = [agent, *sys.argv[sys.argv.index("belljar") + 1 :]]
    main()
