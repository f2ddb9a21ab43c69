"""`belljar key`: the keys of the data folder on this machine."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from belljar.cli import options
from belljar.cli.printing import print_json, print_table
from belljar.cli.signals import run_async
from belljar.model.errors import InvalidOption

if TYPE_CHECKING:
    from belljar.control.store.keys import SqlKeys

app = typer.Typer(help="Keys of the HTTP API, kept in the data folder on this machine.", no_args_is_help=True)

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


def _with_keys(data_dir: Path | None, work: Callable[[SqlKeys], Awaitable[T]]) -> T:
    from belljar.control.store.keys import SqlKeys
    from belljar.control.store.opening import open_database
    from belljar.settings import load_settings

    async def opened() -> T:
        database = await open_database(load_settings(data_dir=data_dir), migrate=False)
        try:
            return await work(SqlKeys(database))
        finally:
            await database.close()

    return run_async(opened())


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the key: what it is for.")],
    project: Annotated[str, typer.Option(help="Project whose scripts and jobs the key can access.")] = "default",
    admin: Annotated[bool, typer.Option("--admin", help="Allow the key to create and revoke keys.")] = False,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Create a key and print its secret. It is shown only this once."""
    for word in (name, project):
        if not _NAME.match(word):
            raise InvalidOption(f"{word[:64]!r} is not a valid name; use up to 64 letters, digits and . _ -")
    from belljar.control.projects.scopes import Role, Scope

    granted: dict[str, Any] = {"scopes": frozenset({Scope.ADMIN})} if admin else {"role": Role.MEMBER}
    key, secret = _with_keys(data_dir, lambda keys: keys.create(project, name, **granted))
    if as_json:
        print_json({**key.model_dump(mode="json"), "secret": secret})
        return
    print(secret)


@app.command("ls")
def list_keys(data_dir: options.DataDir = None, as_json: options.Json = False) -> None:
    """List the keys, without their secrets."""
    keys = _with_keys(data_dir, lambda keys: keys.list())
    if as_json:
        print_json([key.model_dump(mode="json") for key in keys])
        return
    rows = [
        (key.id, key.name, key.project, "yes" if key.admin else "", key.last_used_at, "yes" if key.revoked_at else "")
        for key in keys
    ]
    print_table(("ID", "NAME", "PROJECT", "ADMIN", "LAST USED", "REVOKED"), rows)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `belljar key ls` shows it.")],
    data_dir: options.DataDir = None,
) -> None:
    """Revoke a key at once."""
    from belljar.control.store.keys import CACHE_SECONDS

    _with_keys(data_dir, lambda keys: keys.revoke(key_id))
    # A running server caches keys for this long. When this command ends, no server accepts the key.
    time.sleep(CACHE_SECONDS)
