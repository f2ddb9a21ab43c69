"""A script that a waiting interpreter became cannot tell it from `python3 script.py`: the same program both ways."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from belljar.node.guest.command import Command, CommandFailed
from belljar.node.guest.wire import Exited
from support.conversation import Collector, ConnectAgent, ConnectedAgent

PYTHON = shutil.which("python3", path="/usr/bin:/bin")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="needs the system's python3")

ENV = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}
STARTED = ["python3", "/proc/self/fd/4", "." * 2048]

#: Each looks at something that an interpreter has from its start.
BEHAVIOURS = {
    "arguments": "import sys; print(sys.argv, sys.orig_argv)",
    "the main module": """
        import sys
        print(list(globals()))
        print(__name__, __file__, __doc__, __package__, __spec__, __cached__, __annotations__)
        print(type(__loader__), __builtins__)
        print(sys.modules["__main__"].__dict__ is globals(), __loader__.path, __loader__.name)
    """,
    "the path": "import sys; print(sys.path, sys.executable, sys.prefix, sys.flags, sys.warnoptions)",
    "imports of a neighbour": "import neighbour; print(neighbour.NAME, neighbour.__file__)",
    "loaded modules": "import sys; print(sorted(sys.modules))",
    "an uncaught exception": """
        def inner():
            raise ValueError("deep")
        def outer():
            try:
                inner()
            except ValueError as error:
                raise KeyError("outer") from error
        outer()
    """,
    "an exception group": "raise ExceptionGroup('several', [ValueError(1), TypeError('two')])",
    "a hook for exceptions": """
        import sys, traceback
        sys.excepthook = lambda kind, value, trace: print("hooked", kind, traceback.extract_tb(trace))
        1 / 0
    """,
    "a syntax error": "def broken(:\n",
    "bytes that are no UTF-8": "x = '\udcff'\n",
    "an exit code": "import sys; sys.exit(7)",
    "an exit with a message": "import sys; sys.exit('gone wrong')",
    "an exit without Python's end": "import os; print('lost'); os._exit(5)",
    "atexit and destructors": """
        import atexit
        class Loud:
            def __del__(self): print("deleted")
        kept = Loud()
        cycle = Loud(); cycle.me = cycle
        atexit.register(print, "at exit")
        unflushed = open("left.txt", "w"); unflushed.write("whole")
    """,
    "the last destructors": """
        import builtins, sys
        class Loud:
            def __init__(self, name): self.name = name
            def __del__(self, print=print): print("deleted", self.name)
        kept, sys.kept, builtins.kept = Loud("in main"), Loud("in sys"), Loud("in builtins")
        print("no end of line", end="")
    """,
    "a thread and what it starts at exit": """
        import atexit, threading, time
        def late():
            time.sleep(0.05)
            atexit.register(print, "registered late")
            print("late")
        threading.Thread(target=late).start()
    """,
    "output that is closed": "import os; print('lost'); os.close(1)",
    "a stream that is closed": "import sys; sys.stderr.write('closed now'); sys.stdout.close()",
    "a stream of the script's own": """
        import sys
        class Counting:
            flushes = 0
            def write(self, text): return sys.__stdout__.write(text)
            def flush(self): self.flushes += 1; sys.__stdout__.write(f"flush {self.flushes}"); sys.__stdout__.flush()
        sys.stdout = Counting()
        print("mine")
    """,
    "what C's stdio holds": "import ctypes; ctypes.CDLL(None).printf(b'by way of C')",
    "a fork that comes back": """
        import os, sys
        child = os.fork()
        if child:
            print(os.waitpid(child, 0)[1])
        else:
            print("the child")
    """,
    "a signal that kills": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "an interrupt": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "signal handlers": """
        import signal
        for number in sorted(signal.valid_signals()):
            print(number, signal.getsignal(number))
    """,
    "standard input": "import sys; print(repr(sys.stdin.read()), sys.stdin.name, sys.stdin.isatty())",
    "streams": """
        import sys
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            print(stream.encoding, stream.errors, stream.line_buffering, stream.mode, stream.fileno())
    """,
    "multiprocessing": """
        import multiprocessing
        def square(number): return number * number
        if __name__ == "__main__":
            for method in ("fork", "spawn"):
                with multiprocessing.get_context(method).Pool(2) as pool:
                    print(method, pool.map(square, range(5)))
    """,
    "threads": """
        import threading, time
        print(threading.current_thread() is threading.main_thread(), threading.active_count())
        threading.Thread(target=lambda: (time.sleep(0.05), print("last"))).start()
    """,
    "open descriptors": """
        import os
        print([number for number in range(256) if os.path.exists(f"/proc/self/fd/{number}")][:-1][:3])
    """,
    "the process": """
        import os, resource
        print(os.getcwd(), os.umask(0o22), os.getpid() == os.getsid(0) == os.getpgrp())
        print(resource.getrlimit(resource.RLIMIT_CORE), os.nice(0), os.getppid() > 0)
    """,
    "what ps shows": """
        import subprocess, os
        print(subprocess.run(["ps", "-o", "args=", "-p", str(os.getpid())], capture_output=True, text=True).stdout)
    """,
    "the environment": """
        import os, subprocess
        print(dict(os.environ), subprocess.run(["env"], capture_output=True, text=True).stdout)
    """,
    "the source": "import inspect, sys\ndef f(): return 1\nprint(inspect.getsource(f), inspect.getfile(f))",
    "pickles of main's classes": """
        import pickle
        class Thing: pass
        print(type(pickle.loads(pickle.dumps(Thing()))) is Thing)
    """,
    "warnings": "import warnings; warnings.warn('careful'); x = '\\d'",
    "recursion": """
        import sys
        def deeper(n): return deeper(n + 1)
        try: deeper(0)
        except RecursionError as error: print(error, sys.getrecursionlimit())
    """,
}

Run = Callable[[str, bool], Awaitable[tuple[Exited, Collector]]]


def script(folder: Path, text: str) -> Path:
    path = folder / "script.py"
    path.write_bytes(textwrap.dedent(text).encode("utf-8", "surrogateescape"))
    (folder / "neighbour.py").write_text("NAME = 'next door'\n")
    return path


async def run(
    agent: ConnectedAgent, path: Path, prefork: str, env: dict[str, str] | None = None
) -> tuple[Exited, Collector]:
    if prefork:
        await agent.connection.prepare(Command(argv=STARTED, env=ENV, cwd="/", isolated=False, prefork=prefork))
    command = Command(
        argv=["python3", str(path), "one", "tw o"],
        env=ENV | {"MODE": "fast"} | (env or {}),
        cwd=str(path.parent),
        isolated=False,
        prefork=prefork,
        keep=True,
    )
    sink = Collector()
    exited = await agent.connection.run(command, "stdin é\n".encode(), sink, agent.started.append)
    return exited, sink


def seen(exited: Exited, sink: Collector) -> tuple[object, ...]:
    """What a user would see, less what differs from one process to the next."""
    output = (re.sub(rb"0x[0-9a-f]+", b"~", text) for text in (sink.stdout, sink.stderr))
    return exited.exit_code, exited.signal, *output


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
async def test_a_script_sees_what_it_sees_in_a_fresh_interpreter(
    behaviour: str, connect_agent: ConnectAgent, tmp_path: Path
) -> None:
    path = script(tmp_path, BEHAVIOURS[behaviour])
    async with connect_agent() as agent:
        fresh = seen(*await run(agent, path, ""))
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        waited = seen(*await run(agent, path, "python"))
    assert waited == fresh
    assert fresh[2] or fresh[3] or fresh[0] or fresh[1], "the behaviour shows nothing"
    if behaviour == "atexit and destructors":
        assert (tmp_path / "left.txt").read_text() == "whole"


async def test_the_interpreter_that_waited_is_the_one_that_runs(connect_agent: ConnectAgent, tmp_path: Path) -> None:
    """The comparison above means something: the second of each pair did not start an interpreter of its own."""
    path = script(tmp_path, "import gc; print(gc.get_freeze_count() > 0)")
    async with connect_agent() as agent:
        assert [(await run(agent, path, prefork))[1].stdout for prefork in ("", "python")] == [b"False\n", b"True\n"]


async def test_after_the_scripts_end_the_interpreter_takes_nothing_apart(
    connect_agent: ConnectAgent, tmp_path: Path
) -> None:
    """The one difference: what nothing but the interpreter's state holds is not deleted."""
    text = """
        import codecs, os
        class Search:
            def __call__(self, name): return None
            def __del__(self, write=os.write): write(1, b"taken apart")
        codecs.register(Search())
    """
    path = script(tmp_path, text)
    async with connect_agent() as agent:
        assert [(await run(agent, path, prefork))[1].stdout for prefork in ("", "python")] == [b"taken apart", b""]


@pytest.mark.parametrize("env", [{"PYTHONHASHSEED": "7"}, {"PYTHONPATH": "/opt"}, {"LC_ALL": "C"}, {"HOME": "/other"}])
async def test_settings_that_are_read_at_start_are_honoured(
    env: dict[str, str], connect_agent: ConnectAgent, tmp_path: Path
) -> None:
    path = script(tmp_path, "import gc, sys; print(gc.get_freeze_count(), sys.path, sys.flags)")
    async with connect_agent() as agent:
        fresh = seen(*await run(agent, path, "", env))
        assert seen(*await run(agent, path, "python", env)) == fresh
    assert fresh[2].startswith(b"0 ")  # type: ignore[union-attr]


async def test_the_time_zone_is_the_jobs(connect_agent: ConnectAgent, tmp_path: Path) -> None:
    path = script(tmp_path, "import time; print(time.strftime('%Z', time.gmtime(0)), time.tzname)")
    async with connect_agent() as agent:
        assert b"EST" in (await run(agent, path, "python", {"TZ": "EST5EDT"}))[1].stdout


async def test_suspended_agents_wait_for_their_identity_and_go_on(connect_agent: ConnectAgent, tmp_path: Path) -> None:
    path = script(tmp_path, "print('became')")
    async with connect_agent() as agent:
        await agent.connection.prepare(Command(argv=STARTED, env=ENV, cwd="/", isolated=False, prefork="python"))
        await agent.connection.suspend()
        await agent.connection.resume(10)
        command = Command(argv=["python3", str(path)], env=ENV, cwd=str(tmp_path), isolated=False, prefork="python")
        sink = Collector()
        exited = await agent.connection.run(command, b"", sink, agent.started.append)
        assert (exited.exit_code, sink.stdout) == (0, b"became\n")


async def test_a_warm_up_is_followed_by_the_job_and_takes_none_of_its_input(
    connect_agent: ConnectAgent, tmp_path: Path
) -> None:
    warm_up = Command(argv=["sh", "-c", "cat; echo $0"], env=ENV, cwd="/", isolated=False)
    async with connect_agent() as agent:
        for _ in range(3):
            sink = Collector()
            exited = await agent.connection.warm_up(warm_up, sink)
            assert (exited.exit_code, sink.stdout) == (0, b"sh\n")
        job = Command(argv=["cat"], env=ENV, cwd=str(tmp_path), isolated=False)
        sink = Collector()
        await agent.connection.run(job, b"x" * 300_000, sink, agent.started.append)
        assert sink.stdout == b"x" * 300_000


async def test_waiting_processes_do_not_keep_another_jobs_streams_open(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        for _ in range(3):
            await agent.connection.prepare(Command(argv=STARTED, env=ENV, cwd="/", isolated=False, prefork="python"))
            await agent.connection.prepare(Command(argv=[], env=ENV, cwd="/", isolated=False))
        sink = Collector()
        async with asyncio.timeout(20):
            exited = await agent.connection.warm_up(Command(argv=["cat"], env=ENV, cwd="/", isolated=False), sink)
        assert exited.exit_code == 0


async def test_a_program_that_does_not_wait_is_reported(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        with pytest.raises(CommandFailed):
            await agent.connection.prepare(Command(argv=["true"], env=ENV, cwd="/", isolated=False, prefork="python"))
        with pytest.raises(CommandFailed):
            await agent.connection.prepare(
                Command(argv=STARTED, env=ENV, cwd="/", isolated=False, prefork="../agent.c")
            )
        exited, _ = await agent.run("true")
        assert exited.exit_code == 0


async def test_a_script_does_not_get_an_interpreter_that_was_killed_while_it_waited(
    connect_agent: ConnectAgent, tmp_path: Path
) -> None:
    path = script(tmp_path, "import gc; print(gc.get_freeze_count() > 0)")
    async with connect_agent() as agent:
        await agent.connection.prepare(Command(argv=STARTED, env=ENV, cwd="/", isolated=False, prefork="python"))
        (reaper,) = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text().split()
        (waiting,) = Path(f"/proc/{reaper}/task/{reaper}/children").read_text().split()
        os.kill(int(waiting), signal.SIGKILL)
        async with asyncio.timeout(20):
            while Path(f"/proc/{reaper}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                await asyncio.sleep(0.01)
        command = Command(argv=["python3", str(path)], env=ENV, cwd=str(tmp_path), isolated=False, prefork="python")
        sink = Collector()
        exited = await agent.connection.run(command, b"", sink, agent.started.append)
        assert (exited.exit_code, sink.stdout) == (0, b"False\n")
