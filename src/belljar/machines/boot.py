"""The first words with the agent of a machine that boots; and what to make of one that dies on the way."""

from __future__ import annotations

import asyncio

from belljar.errors import MachineDied
from belljar.guest.session import Session
from belljar.machines.protocol import Machine

#: What the agent writes to the console before it ends a machine without a timer (check_clock in guest/agent/boot.c).
_NO_CLOCK = b"belljar-agent: no clock"
#: What a machine said before it died may still be under way.
_LAST_WORDS_SECONDS = 1.0


class NoClock(MachineDied):
    """The guest's kernel found no timer that it trusts. Another boot finds one."""


async def open_session(machine: Machine, timeout_seconds: float) -> Session:
    """Wait for the agent, and accept it.

    Raises NoClock, MachineDied with the reason of the death, MachineTimeout, GuestProtocolError.
    """
    session = Session(machine.reader, machine.writer)
    opening, dying = asyncio.create_task(session.open(timeout_seconds)), asyncio.create_task(machine.death())
    try:
        await asyncio.wait({opening, dying}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done() and not isinstance(opening.exception(), MachineDied):
            opening.result()
            return session
        await asyncio.wait({dying}, timeout=_LAST_WORDS_SECONDS)
        message = dying.result().message if dying.done() else "the machine went away while it booted"
        if _NO_CLOCK in machine.console.data:
            raise NoClock("the guest's kernel found no timer that it trusts, as happens on a busy host")
        raise MachineDied(message)
    finally:
        opening.cancel()
        dying.cancel()
        await asyncio.gather(opening, dying, return_exceptions=True)
