"""Checks that a value is the same after a way as JSON. This file also runs in the machines of functions."""

from __future__ import annotations

_MAX_DEPTH = 100


def check_json(value: object, name: str, depth: int = 0) -> None:
    """Raise TypeError unless the value consists of None, bool, int, float, str, list, tuple and dict with str keys.

    Tuples arrive as lists.
    """
    if depth > _MAX_DEPTH:
        raise TypeError(f"{name} is nested over {_MAX_DEPTH} deep; make it flatter")
    if value is None or type(value) in (bool, int, float, str):
        return
    if type(value) in (list, tuple):
        for index, each in enumerate(value):  # type: ignore[arg-type, var-annotated]
            check_json(each, f"{name}[{index}]", depth + 1)
        return
    if type(value) is dict:
        for key, each in value.items():
            if type(key) is not str:
                raise TypeError(f"{name} has the key {key!r:.100} of type {type(key).__name__}; use str keys")
            check_json(each, f"{name}[{key!r:.100}]", depth + 1)
        return
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    raise TypeError(
        f"{name} is of type {kind}; arguments and results travel as JSON: use None, bool, int, float, str, list or dict"
    )
