"""Whose fault the death of a clone is: the snapshot's, this host's, or unknown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from belljar.model.errors import HostError
from belljar.node.machines.protocol import BadSnapshot, DeathCause
from belljar.node.machines.racing import MachineDead

_ADVICE = "run fewer jobs at once"


@contextlib.contextmanager
def clone_deaths() -> Iterator[None]:
    """Raise the death of a clone as BadSnapshot when its snapshot is the cause, as HostError when this host is."""
    try:
        yield
    except MachineDead as error:
        if error.death.cause is DeathCause.SNAPSHOT:
            raise BadSnapshot(error.message) from None
        if error.death.cause is DeathCause.HOST:
            advice = "" if _ADVICE in error.message else f"; {_ADVICE}"
            raise HostError(f"a machine cannot be cloned: {error.message}{advice}") from None
        raise
