"""Languages for tests of scripts."""

from __future__ import annotations

from belljar.model.image import Language

PYTHON = Language(
    name="python",
    extensions=(".py",),
    interpreters=("python3", "python"),
    entrypoints=("main.py", "__main__.py"),
    run=("python3", "{entrypoint}"),
)
SHELL = Language(
    name="shell",
    extensions=(".sh",),
    interpreters=("sh", "bash"),
    entrypoints=("main.sh", "run.sh"),
    run=("sh", "{entrypoint}"),
)
C = Language(name="c", extensions=(".c",), entrypoints=("main.c",), run=("{output}",), compile=("cc", "{entrypoint}"))
CPP = Language(
    name="cpp",
    aliases=("c++",),
    extensions=(".cpp", ".C"),
    entrypoints=("main.cpp", "src/main.cpp"),
    run=("{output}",),
    compile=("c++", "{entrypoint}"),
)
BINARY = Language(name="binary", extensions=(".bin",), run=("{entrypoint}",))
