"""From a Python function to the files of a script that calls it: its source text, without what is around it.

The function is sent as text, never as a pickle, so what arrives is what is on the screen. What it uses from outside
itself is refused by name, except modules and what is imported from them.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import symtable
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from belljar.client.errors import FunctionRefused

#: The file that the machine writes, and the artifact that the caller reads.
RESULT = "belljar-result.json"
ENTRYPOINT = "main.py"
_FUNCTION_MODULE = "belljar_function"
_JSON_MODULE = "belljar_json_values"
_MAIN = """
import asyncio, inspect, json, sys, traceback
from pathlib import Path

import {json_module}

result_file = Path({result!r}).absolute()
sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000))


def call():
    arguments = json.load(sys.stdin)
    import {function_module}

    value = {function_module}.{name}(*arguments["args"], **arguments["kwargs"])
    if inspect.iscoroutine(value):
        value = asyncio.run(value)
    {json_module}.check_json(value, "the result of {name}")
    return json.dumps({{"result": value}})


try:
    text, code = call(), 0
except Exception as error:
    lines = traceback.format_exception(type(error), error, error.__traceback__.tb_next or error.__traceback__)
    answer = {{"type": type(error).__name__, "message": str(error)[:100000], "traceback": "".join(lines)[-100000:]}}
    text, code = json.dumps({{"error": answer}}), 1
result_file.write_text(text)
sys.exit(code)
"""


def function_files(function: Callable[..., Any], dependencies: Sequence[str] = ()) -> dict[str, str]:
    """Return the files of a script that calls the function with `{"args", "kwargs"}` of stdin and writes RESULT.

    Raises FunctionRefused for a function that needs more than its own source.
    """
    source = _own_source(function)
    name = function.__name__
    imports = "".join(f"{line}\n" for line in _imports(function, source))
    main = _MAIN.format(json_module=_JSON_MODULE, function_module=_FUNCTION_MODULE, result=RESULT, name=name)
    return {
        ENTRYPOINT: _declaration(dependencies) + main.lstrip(),
        f"{_FUNCTION_MODULE}.py": f"from __future__ import annotations\n\n{imports}\n\n{source}",
        f"{_JSON_MODULE}.py": (Path(__file__).parent / "json_values.py").read_text(),
    }


def _declaration(dependencies: Sequence[str]) -> str:
    """Return the block of inline metadata (PEP 723) that declares the packages."""
    if isinstance(dependencies, str):
        raise FunctionRefused(f"dependencies is the text {dependencies!r:.100}; use a list of requirements")
    if not dependencies:
        return ""
    return f"# /// script\n# dependencies = {json.dumps(list(dependencies))}\n# ///\n"


def _own_source(function: Callable[..., Any]) -> str:
    """Return the text of the function's `def` without decorators."""
    name = getattr(function, "__qualname__", repr(function))
    if not isinstance(function, FunctionType) or function.__name__ == "<lambda>":
        raise FunctionRefused(f"{name} is no function made with def; only those run in machines")
    if hasattr(function, "__wrapped__"):
        raise FunctionRefused(f"{name} is wrapped by another decorator; put belljar's below all others, or remove them")
    if function.__code__.co_freevars:
        outer = ", ".join(function.__code__.co_freevars)
        raise FunctionRefused(f"{name} uses variables of the function around it ({outer}); pass them as arguments")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise FunctionRefused(f"{name} is a generator; return a list")
    try:
        text = textwrap.dedent(inspect.getsource(function))
        definition = ast.parse(text).body[0]
    except (OSError, TypeError):
        raise FunctionRefused(f"the source of {name} is not in a file; define it in a module or a notebook") from None
    except SyntaxError:
        raise FunctionRefused(f"the source of {name} cannot be cut out of its file; move it to module level") from None
    if not isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef):
        raise FunctionRefused(f"{name} is no function made with def; only those run in machines")
    return "".join(text.splitlines(keepends=True)[definition.lineno - 1 :])


def _imports(function: Callable[..., Any], source: str) -> Iterator[str]:
    """Yield the import lines for the modules, and what is from modules, that the function uses by global names."""
    values = inspect.unwrap(function).__globals__
    for name in sorted(_global_names(source) - {function.__name__} - set(dir(builtins)) - {"__name__", "__file__"}):
        if name not in values:
            raise FunctionRefused(f"{function.__qualname__} uses {name}, which is not defined")
        value = values[name]
        if isinstance(value, ModuleType):
            yield f"import {value.__name__} as {name}"
            continue
        module, original = getattr(value, "__module__", None), getattr(value, "__name__", None)
        is_imported = isinstance(module, str) and module != function.__module__ and isinstance(original, str)
        if not is_imported or getattr(sys.modules.get(str(module)), str(original), None) is not value:
            raise FunctionRefused(
                f"{function.__qualname__} uses {name} from outside itself, which is not sent with it; "
                "pass it as an argument or move it into the function"
            )
        yield f"from {module} import {original} as {name}"


def _global_names(source: str) -> set[str]:
    """Return the names that the source uses and does not define, except in annotations, which are not evaluated."""
    tree = _WithoutAnnotations().visit(ast.parse(source))
    tables = [symtable.symtable(ast.unparse(ast.fix_missing_locations(tree)), "function", "exec")]
    found = set()
    for table in tables:
        tables.extend(table.get_children())
        is_module = table.get_type() == "module"
        for symbol in table.get_symbols():
            if symbol.is_global() or (is_module and symbol.is_referenced() and not symbol.is_assigned()):
                found.add(symbol.get_name())
    return found


class _WithoutAnnotations(ast.NodeTransformer):
    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return self.generic_visit(ast.copy_location(ast.Assign(targets=[node.target], value=node.value), node))
