"""`belljar serve` whose sandboxes are processes of the agent: everything but the hypervisor is the real one.

A prefix of `support.running.serving`: called as `sandbox_server.py FOLDER … belljar serve …`; FOLDER is the working
folder of every command.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import belljar.app.server as app
from belljar.cli.main import main
from support.sandbox_node import AgentNode


class AgentWorker:
    """A worker that holds sandboxes only."""

    folder: Path

    def __init__(self, services: Any, *_: Any, **__: Any) -> None:
        self._node = AgentNode(services.sandbox_queue.link, self.folder)

    async def run(self) -> None:
        async with self._node.running():
            await asyncio.Event().wait()


if __name__ == "__main__":
    AgentWorker.folder = Path(sys.argv[1])
    setattr(app, "open_worker", AgentWorker)  # noqa: B010
    sys.argv[:] = ["belljar", *sys.argv[sys.argv.index("belljar") + 1 :]]
    main()
