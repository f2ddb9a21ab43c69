"""`belljar sandbox ports`: which ports programs in a sandbox listen on, and ports of this host that lead there."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Annotated, NamedTuple

import typer

from belljar.cli import options
from belljar.cli.flags import ServerFlags
from belljar.cli.printing import print_json, print_line, print_message, print_table
from belljar.cli.sandbox_commands import SandboxId
from belljar.cli.server import connect, connect_async
from belljar.model.errors import InvalidOption

_FORWARD = re.compile(r"(?:([0-9]{1,5}):)?([0-9]{1,5})\Z", re.ASCII)
_MAX_PORT = 65535


class _Forward(NamedTuple):
    local_port: int
    port: int


def ports(
    sandbox_id: SandboxId,
    server: ServerFlags,
    forward: Annotated[
        list[str] | None,
        typer.Option(metavar="[LOCAL:]PORT", help="Forward 127.0.0.1:LOCAL to PORT until Ctrl-C. Repeatable."),
    ] = None,
    token: Annotated[
        int | None, typer.Option(metavar="PORT", help="Make a token for this port and print its URL for a browser.")
    ] = None,
    lifetime: Annotated[
        str | None, typer.Option(metavar="TIME", help="The token is valid so long, such as 45m. Default: to the end.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the TCP ports that programs in a sandbox listen on, with their URLs; forward ports, or let others in."""
    if token is not None:
        _make_token(sandbox_id, token, lifetime, server, as_json=as_json)
        return
    if forward:
        if as_json:
            raise InvalidOption("--forward prints no data; leave out --json", option="forward")
        _forward(sandbox_id, [_parsed(each) for each in forward], server)
        return
    with connect(server) as client:
        box = client.get_sandbox(sandbox_id)
        found = [{**each, "url": each["url"] or box.url(each["port"])} for each in box.ports()]
    if as_json:
        print_json(found)
    else:
        print_table(("PORT", "ADDRESS", "URL"), [(each["port"], each["address"], each["url"]) for each in found])


def _make_token(sandbox_id: str, port: int, lifetime: str | None, server: ServerFlags, *, as_json: bool) -> None:
    seconds = options.seconds(lifetime, "--lifetime")
    with connect(server) as client:
        made = client.get_sandbox(sandbox_id).port_token(port, lifetime_seconds=seconds)
    if as_json:
        print_json(made)
    else:
        print_line(made["url"] or made["token"])


def _forward(sandbox_id: str, forwards: list[_Forward], server: ServerFlags) -> None:
    """Forward until a signal ends the command. Raises Stopped, InvalidOption."""
    from belljar.cli.signals import run_async

    def report(error: Exception) -> None:
        print_message(f"a connection was closed: {error}")

    async def run() -> None:
        async with connect_async(server) as client, contextlib.AsyncExitStack() as stack:
            box = await client.get_sandbox(sandbox_id)
            for local_port, port in forwards:
                try:
                    opened = await stack.enter_async_context(box.forward(port, local_port, on_error=report))
                except OSError as error:
                    reason = f"cannot listen on 127.0.0.1:{local_port}: {error.strerror or error}; choose another port"
                    raise InvalidOption(reason, option="forward") from None
                print_message(f"127.0.0.1:{opened.port} leads to port {port} of {sandbox_id}; Ctrl-C ends it")
            await asyncio.Event().wait()

    run_async(run())


def _parsed(text: str) -> _Forward:
    match = _FORWARD.match(text)
    if match is None or not 0 < int(match[2]) <= _MAX_PORT or int(match[1] or 0) > _MAX_PORT:
        raise InvalidOption(f"--forward takes [LOCAL:]PORT, such as 8080:80, not {text[:40]!r}", option="forward")
    port = int(match[2])
    return _Forward(int(match[1]) if match[1] is not None else port, port)
