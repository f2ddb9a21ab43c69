"""Runs code piece by piece in one namespace, the module `__main__`, and tells the host what came of it.

The host starts this program with its requests on descriptor 0, and reads the messages for it from 1. Both are moved
away, so that user code finds an empty standard input there, and pipes for its output.
"""

from __future__ import annotations

import builtins
import faulthandler
import linecache
import os
import platform
import signal
import subprocess
import sys
import traceback
from types import CodeType, ModuleType, TracebackType
from typing import Any

from belljar.control.sandboxes.kernels.python.cells import CHANGE_FOLDER, SHELL, Compiler
from belljar.control.sandboxes.kernels.python.figures import AfterImport, Figures, figure_bundle, is_figure
from belljar.control.sandboxes.kernels.python.notebook import NotebookModules
from belljar.control.sandboxes.kernels.python.rich import bundle_of, sendable
from belljar.control.sandboxes.kernels.python.streams import Channel, Interrupts, StandardStreams, flush

#: How the names of this program's own files begin: their lines are no part of a traceback.
_OWN = "belljar."
_CELL = "<cell "
#: Cells whose lines are kept for tracebacks.
_MAX_CELLS = 500
_MAX_MESSAGE = 64 * 1024
_MAX_TRACEBACK = 256 * 1024
#: inspect.CO_COROUTINE, the flag of code that awaits; that module takes long to import.
_CO_COROUTINE = 0x80


class Kernel:
    """One namespace and the code that has run in it."""

    def __init__(self, channel: Channel, streams: StandardStreams, interrupts: Interrupts) -> None:
        self._channel = channel
        self._streams = streams
        self._interrupts = interrupts
        self._compiler = Compiler()
        self._figures = Figures(lambda bundle: self._show(sendable(bundle)))
        self._count = 0
        self._loop: Any = None
        self._main = ModuleType("__main__")
        self._main.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = self._main
        sys.argv = [""]
        provided = {"display": self.display, "input": _no_input, SHELL: _run_shell, CHANGE_FOLDER: _change_folder}
        builtins.__dict__.update(provided)
        patches = {"matplotlib.pyplot": self._figures.patch, "IPython.core.display_functions": self._patch_ipython}
        sys.meta_path.insert(0, AfterImport(patches))
        sys.meta_path.append(NotebookModules(self.display))
        sys.path.insert(0, "")

    def serve(self) -> None:
        """Run what the host sends, to its end."""
        process = os.getpid()
        version = f"{platform.python_implementation()} {platform.python_version()}"
        self._channel.send("ready", version=version)
        while (request := self._channel.receive()) is not None:
            self._channel.run = request["run"]
            self._streams.begin()
            self._count += 1
            error = self._run(request["code"])
            if os.getpid() != process:  # user code forked, and the child went on to here
                flush()
                os._exit(1 if error else 0)
            self._streams.drain()
            if error is not None:
                self._channel.send("error", **error)
            self._channel.send("done", execution_count=self._count)
            self._channel.run = None

    def display(self, *values: Any, raw: bool = False, **_: Any) -> None:
        """Show values as results, like the function of this name in notebooks. `raw`: they are MIME bundles."""
        for value in values:
            self._show(sendable(value) if raw else self._bundle(value))

    def _run(self, code: str) -> dict[str, Any] | None:
        """Run a cell. Return what it raised, as it is sent."""
        name = f"{_CELL}{self._count}>"
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        linecache.cache.pop(f"{_CELL}{self._count - _MAX_CELLS}>", None)
        try:
            try:
                signal.signal(signal.SIGINT, self._interrupts.handle)
                self._interrupts.is_running = True
                self._evaluate(code, name)
            finally:
                self._figures.show_open()
                self._interrupts.is_running = False
        except BaseException as error:  # noqa: BLE001 (user code may raise anything)
            self._interrupts.is_running = False
            return _described(error)
        return None

    def _evaluate(self, code: str, name: str) -> None:
        cell = self._compiler.compile(code, name)
        if cell.statements is not None:
            self._finish(cell.statements)
        value = None if cell.expression is None else self._finish(cell.expression)
        if value is not None:
            self._main.__dict__["_"] = value
            self._show(self._bundle(value), is_main=True)
            if is_figure(value):
                self._figures.close(value)

    def _finish(self, code: CodeType) -> Any:
        """Evaluate compiled code, and await it if it awaits."""
        value = eval(code, self._main.__dict__)
        if not code.co_flags & _CO_COROUTINE:
            return value
        import asyncio  # only now: it takes long

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(value)
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            task.cancel()
            self._loop.run_until_complete(asyncio.wait([task]))
            raise

    def _bundle(self, value: Any) -> dict[str, Any]:
        return sendable(figure_bundle(value)) if is_figure(value) else bundle_of(value)

    def _show(self, bundle: dict[str, Any], *, is_main: bool = False) -> None:
        if not self._channel.is_open:  # in a forked process
            sys.stdout.write(f"{bundle.get('text/plain', '')}\n")
            return
        self._streams.drain()  # what was printed before comes before
        self._channel.send("result", data=bundle, is_main=is_main)

    def _patch_ipython(self, module: ModuleType) -> None:
        setattr(module, "display", self.display)  # noqa: B010


def _described(error: BaseException) -> dict[str, Any]:
    """Return name, message and traceback, without the frames of this program."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 (user code)
        message = "(its message cannot be shown)"
    try:
        shown = traceback.TracebackException(type(error), error, _from_cell(error.__traceback__))
        _without_own_frames(shown)
        text = "".join(shown.format())
    except Exception as second:  # noqa: BLE001 (user code)
        text = f"{type(error).__name__}: {message[:1000]}\n(no traceback: {type(second).__name__})\n"
    if len(text) > _MAX_TRACEBACK:
        half = _MAX_TRACEBACK // 2
        text = f"{text[:half]}\n… ({len(text) - 2 * half} characters)\n{text[-half:]}"
    return {"name": type(error).__name__, "message": message[:_MAX_MESSAGE], "traceback": text}


def _from_cell(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the cell's own frame on; the whole when there is none."""
    first = trace
    while first is not None and not first.tb_frame.f_code.co_filename.startswith(_CELL):
        first = first.tb_next
    return first or trace


def _without_own_frames(shown: Any) -> None:
    seen: set[int] = set()
    todo = [shown]
    while todo:
        each = todo.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if each.stack is not None:
            each.stack[:] = [frame for frame in each.stack if not frame.filename.startswith(_OWN)]
        todo += [each.__cause__, each.__context__]


def _no_input(prompt: object = "") -> str:
    raise EOFError("input() has nobody to ask here: the standard input is empty; set the value in the code")


def _run_shell(command: str) -> None:
    flush()
    code = subprocess.run(command, shell=True, check=False).returncode
    if code:
        sys.stderr.write(f"[exit code {code}]\n")


def _change_folder(path: str) -> None:
    os.chdir(os.path.expanduser(path or "~"))
    sys.stdout.write(f"{os.getcwd()}\n")


def main() -> None:
    """Move the descriptors away from user code, and serve."""
    requests, replies, errors = (os.dup(fd) for fd in (0, 1, 2))
    faulthandler.enable(errors)  # a crash shows where it was, on the process's own stderr
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    interrupts = Interrupts()
    signal.signal(signal.SIGINT, interrupts.handle)
    channel = Channel(requests, replies, interrupts)
    os.register_at_fork(after_in_child=channel.close)
    Kernel(channel, StandardStreams(channel, interrupts), interrupts).serve()
    os._exit(0)
