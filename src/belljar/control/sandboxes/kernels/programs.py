"""The kernels by language: the command that starts each in a sandbox, and the program that it reads first."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources

from belljar.model.errors import InvalidOption

_PACKAGE = "belljar.control.sandboxes.kernels"
#: In the order of their imports; the last one has the program's `main`.
_PYTHON_MODULES = ("streams", "rich", "figures", "notebook", "cells", "kernel")
#: Without the working folder in sys.path until the kernel has imported its modules: a file there could replace them.
_PYTHON_START = """\
import sys
if sys.path[:1] == ['']: del sys.path[0]
import json
for name, text in json.loads(sys.stdin.buffer.readline()):
    module = sys.modules[name] = type(sys)(name)
    exec(compile(text, name, 'exec'), module.__dict__)
module.main()
"""
#: What Node.js and its child processes write to descriptors 1 and 2 is the command's stderr.
_NODE_SHELL = 'exec node -e "$0" 3<&0 4>&1 0</dev/null 1>&2'
_NODE_START = """\
const fs = require("fs"), piece = Buffer.alloc(65536);
let text = "";
for (let size; !text.endsWith("\\n") && (size = fs.readSync(3, piece)); ) text += piece.latin1Slice(0, size);
new Function("require", "load", JSON.parse(text))(require, (name) => import(name));
"""


@dataclass(frozen=True, slots=True)
class Kernel:
    """How the kernel of a language is started."""

    language: str
    #: What the image must have.
    executable: str
    args: tuple[str, ...]
    #: Its first line of input, before any request.
    program: bytes


def kernel_of(language: str) -> Kernel:
    """Return the kernel of a language. Raises InvalidOption for one without."""
    name = _ALIASES.get(language.lower(), language.lower())
    if name == "python":
        return _python()
    if name == "javascript":
        return _javascript()
    shown = language[:40]
    raise InvalidOption(f"there are no contexts for {shown!r}; use python or javascript", option="language")


_ALIASES = {"python3": "python", "py": "python", "js": "javascript", "node": "javascript", "nodejs": "javascript"}


@functools.cache
def _python() -> Kernel:
    folder = resources.files(_PACKAGE) / "python"
    modules = [(f"{_PACKAGE}.python.{name}", (folder / f"{name}.py").read_text()) for name in _PYTHON_MODULES]
    return Kernel("python", "python3", ("python3", "-c", _PYTHON_START), _line(modules))


@functools.cache
def _javascript() -> Kernel:
    text = (resources.files(_PACKAGE) / "node.js").read_text()
    return Kernel("javascript", "node", ("/bin/sh", "-c", _NODE_SHELL, _NODE_START), _line(text))


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"
