"""Faults in front of objects, by the names of their methods: `faults.refuse("claims.finish", times=3)`."""

from __future__ import annotations

import asyncio
import errno
import fnmatch
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from belljar.model.errors import HostError


@dataclass
class Rule:
    """What calls of these names meet, so many times."""

    pattern: str
    error: Callable[[], Exception] | None
    left: float
    after: bool
    hang: bool = False
    met: int = 0


@dataclass
class Faults:
    """What goes wrong, by the names of methods such as `claims.finish` and `blobs.put_file`."""

    rules: list[Rule] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)

    def refuse(
        self,
        pattern: str,
        error: Callable[[], Exception] = lambda: HostError("it refuses"),
        *,
        times: float = float("inf"),
        after: bool = False,
    ) -> Rule:
        """Raise instead of doing it, or `after` it was done."""
        self.rules.append(Rule(pattern, error, times, after))
        return self.rules[-1]

    def hang(self, pattern: str, times: float = float("inf")) -> Rule:
        self.rules.append(Rule(pattern, None, times, after=False, hang=True))
        return self.rules[-1]

    def clear(self) -> None:
        self.rules.clear()

    def meet(self, name: str, *, after: bool = False) -> Rule | None:
        """The rule that this call meets; raises its error."""
        if not after:
            self.calls[name] += 1
        for rule in self.rules:
            if rule.left > 0 and rule.after is after and fnmatch.fnmatch(name, rule.pattern):
                rule.left -= 1
                rule.met += 1
                if rule.error is not None:
                    raise rule.error()
                return rule
        return None


def os_error(number: int) -> Callable[[], Exception]:
    return lambda: OSError(number, os.strerror(number))


EMFILE, ENOSPC, EIO = os_error(errno.EMFILE), os_error(errno.ENOSPC), os_error(errno.EIO)


class Faulty:
    """Stands in front of an object; its methods meet the faults of their names first."""

    def __init__(self, target: Any, prefix: str, faults: Faults) -> None:
        self._target = target
        self._prefix = prefix
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value
        called, faults = f"{self._prefix}.{name}", self._faults
        if asyncio.iscoroutinefunction(value):

            async def met(*args: Any, **options: Any) -> Any:
                rule = faults.meet(called)
                if rule is not None and rule.hang:
                    await asyncio.get_running_loop().create_future()
                result = await value(*args, **options)
                faults.meet(called, after=True)
                return result

            return met

        def direct(*args: Any, **options: Any) -> Any:
            faults.meet(called)
            return value(*args, **options)

        return direct
