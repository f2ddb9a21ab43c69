"""`belljar` whose machines are processes of the agent: everything of `belljar run` but the hypervisor is the real one.

Called as `agent_jobs.py AGENT WORKING_FOLDER SCRIPT belljar's words…`; the job is Python of this host on SCRIPT.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import belljar.app.local_run as app
import belljar.node.worker.runner as runner
from belljar.cli.main import main
from support.agent_process import ProcessHypervisor

agent, folder, script = sys.argv[1:4]
hypervisor = ProcessHypervisor(Path(agent))


class FixedSelector:
    def __init__(self, settings: Any) -> None: ...

    async def hypervisor(self, image: Any) -> ProcessHypervisor:
        return hypervisor


class ProcessProvisioner:
    pool = None

    def __init__(self, snapshots: Any) -> None: ...

    @asynccontextmanager
    async def machine(self, made_by: ProcessHypervisor, spec: Any, *_: Any) -> AsyncIterator[Any]:
        async with made_by.ready(spec) as ready:
            yield ready


class NoWarmUps:
    def __init__(self, settings: Any) -> None: ...

    async def of(self, image: Any) -> None: ...


plan_attempt = runner.plan_attempt


def plan_for_this_host(job: Any, *rest: Any, **more: Any) -> Any:
    plan = plan_attempt(job, *rest, **more)
    command = replace(
        plan.command,
        argv=[sys.executable, "-u", script, *job.args],
        env={"PATH": os.environ["PATH"]},
        cwd=folder,
        isolated=False,
        prefork="",
    )
    return replace(plan, command=command)


patched_app: Any = app
patched_app.HypervisorSelector = FixedSelector
patched_app.MachineProvisioner = ProcessProvisioner
patched_app.WarmUps = NoWarmUps
patched_runner: Any = runner
patched_runner.plan_attempt = plan_for_this_host
sys.argv[:] = ["belljar", *sys.argv[4:]]
main()
