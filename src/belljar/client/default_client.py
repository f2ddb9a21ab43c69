"""`@belljar.function`: functions that run on the server of the settings, through one client for the process."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from belljar.client.client import Client
from belljar.client.function import Function

P = ParamSpec("P")
R = TypeVar("R")


def function(
    *, image: str | None = None, memory_mb: int | None = None, dependencies: Sequence[str] = (), **options: Any
) -> Callable[[Callable[P, R]], Function[P, R]]:
    """Return a decorator that lets a Python function run in machines: a Function.

    The server is that of `Client()`; for another one: `client.function`. Further options are those of a job:
    vcpus, timeout_seconds, egress, env, secrets, labels.
    """
    given = {"image": image, "memory_mb": memory_mb, **options}
    present = {name: value for name, value in given.items() if value is not None}

    def decorate(decorated: Callable[P, R]) -> Function[P, R]:
        # A forked process must not share its parent's connections.
        return Function(decorated, lambda: _client(os.getpid()), dependencies, present)

    return decorate


@functools.lru_cache(maxsize=1)
def _client(process_id: int) -> Client:
    return Client()
