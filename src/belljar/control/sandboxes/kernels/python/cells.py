"""Compiles a piece of code: its statements, and the last expression apart, whose value is the result."""

from __future__ import annotations
import __future__

import ast
import re
import shlex
from dataclasses import dataclass
from types import CodeType

_FUTURES = [getattr(__future__, name).compiler_flag for name in __future__.all_feature_names]
_SHELL_LINE = re.compile(r"(\s*)(?:!(?P<shell>.+)|%(?P<magic>pip|cd|matplotlib)\b(?P<rest>.*))")
_SHELL_CELL = re.compile(r"\s*%%(?:bash|sh)[^\n]*\n(.*)", re.S)
#: Calls that lines with ! and % become; the kernel provides them.
SHELL, CHANGE_FOLDER = "__belljar_shell__", "__belljar_cd__"


@dataclass
class Cell:
    """Compiled code. Either part may be missing."""

    statements: CodeType | None
    expression: CodeType | None


class Compiler:
    """Compiles cells. A `from __future__ import` holds for the cells behind it."""

    def __init__(self) -> None:
        self._futures = 0

    def compile(self, code: str, name: str) -> Cell:
        """Compile code. Raises SyntaxError, ValueError, …"""
        tree = self._parse(code, name)
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr) and not code.rstrip().endswith(";"):
            tree.body.pop()
            expression = self._compiled(ast.Expression(last.value), name, "eval")
        else:
            expression = None
        statements = self._compiled(tree, name, "exec") if tree.body else None
        return Cell(statements, expression)

    def _parse(self, code: str, name: str) -> ast.Module:
        flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | self._futures
        try:
            return _module(compile(code, name, "exec", flags, dont_inherit=True))
        except SyntaxError:
            translated = without_magics(code)
            if translated is None:
                raise
            return _module(compile(translated, name, "exec", flags, dont_inherit=True))

    def _compiled(self, tree: ast.AST, name: str, mode: str) -> CodeType:
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | self._futures
        code = compile(tree, name, mode, flags, dont_inherit=True)  # type: ignore[call-overload]
        assert isinstance(code, CodeType)
        for flag in _FUTURES:
            self._futures |= code.co_flags & flag
        return code


def _module(tree: object) -> ast.Module:
    assert isinstance(tree, ast.Module)
    return tree


def without_magics(code: str) -> str | None:
    """Return code whose lines `!command`, `%pip …`, `%cd …` and `%matplotlib …` are calls; None without such lines."""
    whole = _SHELL_CELL.fullmatch(code)
    if whole:
        return f"{SHELL}({whole[1]!r})"
    lines = code.split("\n")
    found: dict[int, str] = {}
    for number, line in enumerate(lines):
        match = _SHELL_LINE.fullmatch(line)
        if match:
            found[number] = match[1] + _call(match["shell"], match["magic"], (match["rest"] or "").strip())
    return "\n".join(found.get(number, line) for number, line in enumerate(lines)) if found else None


def _call(shell: str | None, magic: str | None, rest: str) -> str:
    if shell is not None:
        return f"{SHELL}({shell!r})"
    if magic == "pip":
        return f"{SHELL}({f'python3 -m pip {rest}'!r})"
    if magic == "cd":
        return f"{CHANGE_FOLDER}({' '.join(shlex.split(rest))!r})"
    return "pass"  # plots are shown anyway
