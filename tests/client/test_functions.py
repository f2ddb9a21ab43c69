"""Functions for machines: what is sent of them, what is refused, and what comes back; the script runs on this host."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Callable
from math import sqrt as root
from pathlib import Path
from typing import Any

import pytest

from belljar.client import Client, FunctionRefused
from belljar.client.function_source import RESULT, function_files

FACTOR = 3


def run(function: Callable[..., Any], folder: Path, *args: Any, **kwargs: Any) -> Any:
    """Run the function's script in a process of its own, as a machine would; return its answer."""
    for name, text in function_files(function).items():
        (folder / name).write_text(text)
    stdin = json.dumps({"args": args, "kwargs": kwargs}).encode()
    done = subprocess.run([sys.executable, "main.py"], cwd=folder, input=stdin, capture_output=True, timeout=60)
    answer = json.loads((folder / RESULT).read_text())
    assert (done.returncode, done.stderr) == (0 if "result" in answer else 1, b"")
    return answer


def hypotenuse(a: float, *, b: "Missing" = math.pi) -> float:  # noqa: F821, UP037
    lengths: list[float] = [each**2 for each in (a, b)]
    return root(sum(lengths))


def scaled(x: int) -> int:
    return x * FACTOR


def factorial(n: int) -> int:
    return 1 if n < 2 else n * factorial(n - 1)


async def later(x: int) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"x": (x, None, "ü")}


def failing(text: str) -> None:
    raise LookupError(text)


def a_set() -> Any:
    return [{"a": {1}}]


def numbers() -> Any:
    yield 1


def test_a_function_runs_from_its_source_alone(tmp_path: Path) -> None:
    assert run(hypotenuse, tmp_path, 3, b=4) == {"result": 5.0}
    assert run(factorial, tmp_path, 5) == {"result": 120}
    assert run(later, tmp_path, 1) == {"result": {"x": [1, None, "ü"]}}


def test_an_exception_comes_back_as_text_with_the_line_that_raised_it(tmp_path: Path) -> None:
    error = run(failing, tmp_path, "gone")["error"]
    assert (error["type"], error["message"]) == ("LookupError", "gone")
    assert "raise LookupError(text)" in error["traceback"]


def test_a_result_that_is_not_json_is_named(tmp_path: Path) -> None:
    error = run(a_set, tmp_path)["error"]
    assert error["type"] == "TypeError"
    assert error["message"].startswith("the result of a_set[0]['a'] is of type set")


def test_what_a_function_needs_from_outside_is_refused_by_name() -> None:
    inner = 5

    def enclosed() -> int:
        return inner

    for function, reason in {
        scaled: "scaled uses FACTOR from outside itself",
        enclosed: r"uses variables of the function around it \(inner\)",
        numbers: "is a generator",
        len: "is no function made with def",
        eval("lambda: 1"): "is no function made with def",
    }.items():
        with pytest.raises(FunctionRefused, match=reason):
            function_files(function)
    namespace: dict[str, Any] = {}
    exec("def typed(): return 1", namespace)
    with pytest.raises(FunctionRefused, match="the source of typed is not in a file"):
        function_files(namespace["typed"])


def test_dependencies_are_declared_in_the_script() -> None:
    text = function_files(factorial, ["numpy>=2", "requests"])["main.py"]
    assert text.startswith('# /// script\n# dependencies = ["numpy>=2", "requests"]\n# ///\n')
    with pytest.raises(FunctionRefused, match="use a list"):
        function_files(factorial, "numpy")


def test_arguments_are_checked_before_anything_is_sent() -> None:
    with Client("http://127.0.0.1:1", max_retries=0) as client:
        here = client.function(memory_mb=128)(factorial)
        assert here(5) == 120 and here.__name__ == "factorial"
        for wrong, reason in {
            (frozenset(),): "argument 0 of factorial is of type frozenset",
            (b"x",): "type bytes",
            (math,): "type module",
        }.items():
            with pytest.raises(FunctionRefused, match=reason):
                here.submit(*wrong)
        with pytest.raises(FunctionRefused, match="has the key 1 of type int"):
            here.submit({1: 2})  # type: ignore[arg-type]
        with pytest.raises(FunctionRefused, match="has no option stdin"):
            client.function(stdin="x")(factorial)
