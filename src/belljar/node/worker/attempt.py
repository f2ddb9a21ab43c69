"""One attempt at a job: take a machine, run the job's plan in it, and remove the machine.

A script that failed is an `AttemptEnd`; infrastructure that failed under it is a `MachineError`. This module must not
know of a database.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from belljar.model.errors import MachineError
from belljar.model.flows import FlowReport
from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.protocol import MachineSpec
from belljar.node.machines.provision.request import ProvisionedMachine
from belljar.node.machines.racing import run_unless_dead
from belljar.node.network.traffic import Traffic
from belljar.node.worker.alarm import Alarm
from belljar.node.worker.attempt_end import AttemptEnd, Stop
from belljar.node.worker.cancellation import unless_cancelled
from belljar.node.worker.observer import AttemptObserver
from belljar.node.worker.plan import AttemptPlan
from belljar.node.worker.script_run import ScriptRun

log = structlog.get_logger()

#: Output that the guest sent before its machine died may still be on its way.
LAST_OUTPUT_SECONDS = 1.0

#: Gives a machine of that spec for the block, and removes it afterwards.
MachineFactory = Callable[[MachineSpec], AbstractAsyncContextManager[ProvisionedMachine]]


class AttemptNetwork(Protocol):
    """The network of the machine."""

    @property
    def alarm(self) -> Alarm:
        """The alarm that stops the script."""
        ...

    async def traffic(self) -> Traffic | None:
        """Return the traffic so far; None without a network, or when it cannot be read."""
        ...

    async def finish_flows(self) -> FlowReport | None:
        """Return all flows; None when they are not counted."""
        ...


@asynccontextmanager
async def attempt(
    plan: AttemptPlan,
    machine_factory: MachineFactory,
    observer: AttemptObserver,
    cancel: asyncio.Event,
    network: AttemptNetwork | None = None,
) -> AsyncIterator[AttemptEnd]:
    """Run the plan in a fresh machine; the block handles how it ended while the machine is removed.

    The block and the removal run at the same time: the block may need the disk space that the machine holds, and need
    not wait for the removal, which is slow. Nothing of the machine is left after the block. Setting `cancel` stops the
    job at any point.

    Raises MachineError or HostError when the machine failed rather than the script; the attempt may then be repeated.
    """
    run = _Attempt(plan, machine_factory, observer, cancel, network)
    holder = asyncio.create_task(run.hold_machine())
    try:
        await asyncio.wait({holder, run.ended}, return_when=asyncio.FIRST_COMPLETED)
        if not run.ended.done():
            holder.result()  # raises why there is no end
        yield run.end
    except asyncio.CancelledError:
        holder.cancel()
        raise
    finally:
        await uninterrupted(_wait(holder))
    holder.result()


async def _wait(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # marks it as retrieved, where the block's own error is raised instead


@dataclass(eq=False)
class _Attempt:
    plan: AttemptPlan
    machine_factory: MachineFactory
    observer: AttemptObserver
    cancel: asyncio.Event
    network: AttemptNetwork | None
    end: AttemptEnd = field(default_factory=AttemptEnd)
    #: Done as soon as `end` is complete.
    ended: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    async def hold_machine(self) -> None:
        """Take a machine, run the plan in it, and remove it."""
        async with AsyncExitStack() as stack:
            provisioned = None
            if not self.cancel.is_set():
                machine = stack.enter_async_context(self.machine_factory(self.plan.machine))
                provisioned = await unless_cancelled(self.cancel, machine)
            if provisioned is None:
                self.end.stop = Stop.CANCELLED
            else:
                self.observer.on_machine(provisioned.source)
                self.end.phases.update(provisioned.phases)
                await self._use(provisioned)
                # Reading the traffic does not wait for the machine's end, which is slow.
                stack.push_async_callback(_killed, asyncio.create_task(provisioned.machine.kill()))
            await self._read_network()
            self.ended.set_result(None)

    async def _use(self, provisioned: ProvisionedMachine) -> None:
        """Run the script. Raises MachineError, HostError when it has no end of its own."""
        machine, end = provisioned.machine, self.end
        alarm = self.network.alarm if self.network is not None else Alarm()
        script = ScriptRun(self.plan, provisioned.connection, self.observer, self.cancel, end, alarm)
        try:
            await run_unless_dead(machine, script.run(), drain_seconds=LAST_OUTPUT_SECONDS)
        except MachineError as error:
            if end.is_over:
                end.collect_error = end.collect_error or error
            elif end.stop is None:
                raise  # a machine that was being stopped may end in any way
        except Exception as error:
            if not end.is_over:
                raise
            log.exception("attempt_failed_after_its_end", machine=machine.id)
            end.collect_error = end.collect_error or MachineError(f"a step after the script's end failed: {error}")
        finally:
            # The end of output is not met where the machine died. Its last bytes are passed on before the first wait.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_OUTPUT_SECONDS):
                    await self.observer.on_output_ended()
            self.observer.on_console(bytes(machine.console.data), machine.console.dropped_bytes)

    async def _read_network(self) -> None:
        """Note the traffic and the flows."""
        if self.network is None:
            return
        try:
            self.end.traffic, self.end.flows = await asyncio.gather(self.network.traffic(), self.network.finish_flows())
        except Exception as error:  # noqa: BLE001 (the script has ended; its result is worth more than these numbers)
            log.warning("traffic_not_read", error=str(error))


async def _killed(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("machine_not_killed", error=str(error))  # the block of its owner ends it
