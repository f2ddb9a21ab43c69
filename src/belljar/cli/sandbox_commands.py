"""`belljar sandbox exec` and `shell`: a command with its streams, or with this terminal."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from belljar.cli import options
from belljar.cli.failure import Failed
from belljar.cli.flags import ServerFlags
from belljar.cli.printing import print_json, print_line
from belljar.cli.server import connect, connect_async
from belljar.model.errors import InvalidOption

if TYPE_CHECKING:
    from belljar.client import Sandbox

SandboxId = Annotated[str, typer.Argument(metavar="ID", help="Id of a sandbox.")]
Cwd = Annotated[str | None, typer.Option(metavar="DIR", help="Working folder. Default: /work.")]
Env = Annotated[list[str] | None, typer.Option(metavar="K=V", help="Variable. Repeatable.")]

#: Exit codes of a command that timed out, and of one that a signal ended, beyond its number.
_TIMED_OUT = 124
_SIGNALLED = 128
_MAX_JSON_BYTES = 64 << 20


def execute(
    sandbox_id: SandboxId,
    args: Annotated[list[str], typer.Argument(metavar="-- COMMAND [ARGS…]", help="Program and its arguments.")],
    server: ServerFlags,
    cwd: Cwd = None,
    env: Env = None,
    tty: Annotated[bool, typer.Option("-t", "--tty", help="Give it this terminal, as `shell` does.")] = False,
    stdin: Annotated[
        str | None, typer.Option(metavar="FILE", help="File for its standard input; '-' reads this command's stdin.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="S", help="Seconds until it is killed.")] = None,
    background: Annotated[
        bool, typer.Option("--background", help="Print its process number and leave it running.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Run a program in a sandbox: stdout, stderr and the exit code are the program's.

    124: it timed out; 128 + N: signal N ended it.
    """
    given = _options(cwd, env, timeout=timeout)
    if tty:
        if stdin is not None or background or as_json:
            raise InvalidOption("--tty needs this terminal; leave out --stdin, --background and --json", option="tty")
        _with_terminal(sandbox_id, args, given, server)
    data = options.stdin_bytes(stdin)
    with connect(server) as client:
        box = client.get_sandbox(sandbox_id)
        if background:
            _start(box, args, given, data, as_json=as_json)
            return
        if as_json:
            result = box.exec(args, stdin=data, max_output_bytes=_MAX_JSON_BYTES, **given)
            print_json({**result.fields, "stdout": result.stdout, "stderr": result.stderr})
            raise Failed(exit_code_of(result.fields))
        code = _pass_on(box, args, given, data)
    raise Failed(code)


def shell(
    sandbox_id: SandboxId,
    server: ServerFlags,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[-- COMMAND…]", help="Default: bash if there is one, else sh.")
    ] = None,
    cwd: Cwd = None,
    env: Env = None,
) -> None:
    """Open a terminal in a sandbox. Ctrl-C, Ctrl-Z and Ctrl-D go to it; Ctrl-] closes it and ends its programs."""
    args = command or ["/bin/sh", "-c", "if command -v bash >/dev/null; then exec bash -l; else exec sh -l; fi"]
    _with_terminal(sandbox_id, args, _options(cwd, env), server)


def exit_code_of(fields: dict[str, Any]) -> int:
    """Return the exit code of this command for a process that has ended."""
    if fields.get("timed_out"):
        return _TIMED_OUT
    if fields.get("exit_code") is not None:
        return int(fields["exit_code"])
    name = str(fields.get("signal"))
    return _SIGNALLED + (signal.Signals[name].value if name in signal.Signals.__members__ else 0)


def _options(cwd: str | None, env: list[str] | None, *, timeout: float | None = None) -> dict[str, Any]:
    return options.without_none(
        cwd=cwd,
        env=options.pairs(env, "--env") or None,
        timeout_seconds=timeout,
    )


def _with_terminal(sandbox_id: str, args: list[str], given: dict[str, Any], server: ServerFlags) -> None:
    """Run the program in this terminal and exit with its code. Raises Failed, InvalidOption."""
    from belljar.cli.sandbox_terminal import run_in_terminal
    from belljar.cli.signals import run_async

    if not (os.isatty(0) and os.isatty(1)):
        reason = "a terminal is necessary; in scripts use: belljar sandbox exec ID -- COMMAND"
        raise InvalidOption(reason, option="tty")

    async def run() -> dict[str, Any]:
        async with connect_async(server) as client:
            return await run_in_terminal(await client.get_sandbox(sandbox_id), args, given)

    raise Failed(exit_code_of(run_async(run())))


def _start(box: Sandbox, args: list[str], given: dict[str, Any], stdin: bytes | None, *, as_json: bool) -> None:
    process = box.start(args, stdin=stdin, **given)
    if as_json:
        print_json(process)
    else:
        print_line(str(process.pid))


def _pass_on(box: Sandbox, args: list[str], given: dict[str, Any], stdin: bytes | None) -> int:
    """Run the program, pass on its output as it comes, and return the exit code."""
    from belljar.cli.passthrough import write_all, write_error

    files = {"stdout": 1, "stderr": 2}
    with box.start(args, background=False, stdin=stdin, **given) as process:
        try:
            for piece in process.output():
                write_all(files[piece.stream], piece.data, lambda: False)
        except BrokenPipeError:
            process.kill()
            raise
        except OSError as error:
            process.kill()
            raise write_error(error) from None
        except BaseException:
            if not process.is_ended:
                process.kill()
            raise
        return exit_code_of(process)
