"""`belljar secret`: the secrets of a project, on a server, or in the data folder on this machine.

A value comes from standard input or a file, never from an argument: every user of a machine sees the arguments of its
processes.
"""

from __future__ import annotations

import getpass
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from belljar.cli import options
from belljar.cli.failure import Failed
from belljar.cli.flags import AdministrationFlags
from belljar.cli.printing import print_json, print_line, print_message, print_table
from belljar.cli.signals import run_async
from belljar.model.errors import InvalidOption

if TYPE_CHECKING:
    from belljar.client import Client
    from belljar.control.secrets.keys import KeySource
    from belljar.control.store.secrets import SqlSecrets
    from belljar.model.secrets import SecretValue
    from belljar.settings import Settings

app = typer.Typer(help="Secrets that jobs get by name; their values are never shown.", no_args_is_help=True)

T = TypeVar("T")
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the secret.")]
Project = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Project, for operators. Default: `default`, or that of your key.", show_default=False
    ),
]


@app.command("set")
def set_secret(
    name: Name,
    server: AdministrationFlags,
    more: Annotated[list[str] | None, typer.Argument(metavar="< FILE", hidden=True)] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="File with the value, taken byte by byte.")
    ] = None,
    project: Project = None,
    as_json: options.Json = False,
) -> None:
    """Set a secret to what standard input has, without the newline at its end; at a terminal, ask for it."""
    if more:
        raise InvalidOption(
            "a value on the command line is shown to every user of this machine in its list of processes, and stays in "
            f"the shell's history; consider it known. Pipe it in instead: belljar secret set {name} < FILE"
        )
    value = _read_value(name, file)
    stored = _with(
        server,
        project,
        on_server=lambda client: client.set_secret(name, value.reveal()),
        here=lambda store, keys, of: _set_here(store, keys, of, name, value),
    )
    if not stored["masked"]:
        print_message("the secret has less than 4 bytes: it is not masked in the output of jobs")
    if as_json:
        print_json(stored)
    else:
        print_line(f"{stored['name']} version {stored['version']}")


@app.command("ls")
def list_secrets(server: AdministrationFlags, project: Project = None, as_json: options.Json = False) -> None:
    """List the secrets of a project, without their values."""
    found = _with(server, project, on_server=lambda client: client.secrets(), here=_list_here)
    if as_json:
        print_json(found)
        return
    print_table(
        ("NAME", "VERSION", "UPDATED", "CREATED"),
        [(each["name"], each["version"], each["updated_at"][:19], each["created_at"][:19]) for each in found],
    )


@app.command("rm")
def remove_secret(
    name: Name, server: AdministrationFlags, project: Project = None, as_json: options.Json = False
) -> None:
    """Remove a secret. Jobs that name it and have not started will fail."""
    removed = _with(
        server,
        project,
        on_server=lambda client: client.remove_secret(name),
        here=lambda store, keys, of: _remove_here(store, keys, of, name),
    )
    if as_json:
        print_json(removed)


@app.command("rotate-key")
def rotate_key(data_dir: options.DataDir = None, as_json: options.Json = False) -> None:
    """Seal all secrets in the data folder on this machine with a new key, or finish a rotation that was interrupted."""
    from belljar.control.secrets.rotation import rotate_key as rotate

    done = _in_data_folder(_settings(data_dir), lambda store, keys: rotate(store, keys))
    if as_json:
        print_json({"key_id": done.key_id, "resealed": done.resealed, "continued": done.continued})
        return
    what = "an earlier rotation is finished" if done.continued else "the key is new"
    print_line(f"{what}: {done.key_id}; {done.resealed} secrets were sealed anew")


# --- the value --------------------------------------------------------------------------------------------------------


def _read_value(name: str, file: Path | None) -> SecretValue:
    """Return the value. Raises InvalidOption, Failed."""
    from belljar.model.secrets import MAX_SECRET_BYTES, SecretValue

    if file is not None:
        try:
            with file.open("rb") as opened:
                data = opened.read(MAX_SECRET_BYTES + 1)
        except OSError as error:
            raise InvalidOption(f"--file: cannot read {file}: {error.strerror}", option="file") from None
    elif sys.stdin.isatty():
        data = _prompt(name)
    else:
        data = sys.stdin.buffer.read(MAX_SECRET_BYTES + 3)
        data = data.removesuffix(b"\n").removesuffix(b"\r")
    if not data:
        raise InvalidOption("the value is empty; pipe it in, or use --file", option="value")
    if len(data) > MAX_SECRET_BYTES:
        raise InvalidOption(
            f"the value is over {MAX_SECRET_BYTES} bytes; put large data into the script's archive", option="value"
        )
    return SecretValue(data)


def _prompt(name: str) -> bytes:
    """Ask twice at the terminal, without an echo."""
    try:
        first = getpass.getpass(f"Value of {name}: ")
        second = getpass.getpass("Again: ")
    except EOFError:
        raise Failed(1, "no value was given") from None
    if first != second:
        raise Failed(1, "the two values differ; nothing was changed")
    return first.encode()


# --- where the secrets are --------------------------------------------------------------------------------------------


def _with(
    flags: AdministrationFlags,
    project: str | None,
    *,
    on_server: Callable[[Client], Any],
    here: Callable[[SqlSecrets, KeySource, str], Awaitable[Any]],
) -> Any:
    """Do it on the server that was named, else in the data folder on this machine."""
    from belljar.cli.administration import names_server
    from belljar.cli.server import connect

    if names_server(flags):
        with connect(flags, project=project) as client:
            return on_server(client)
    settings, of = _settings(flags.data_dir), project or "default"
    return _in_data_folder(settings, lambda store, keys: here(store, keys, of), project=of)


def _settings(data_dir: Path | None) -> Settings:
    from belljar.settings import load_settings

    return load_settings(data_dir=data_dir)


def _in_data_folder(
    settings: Settings, work: Callable[[SqlSecrets, KeySource], Awaitable[T]], *, project: str | None = None
) -> T:
    """Raises NotFound when there is no such project."""
    from belljar.cli.logging import start_logging
    from belljar.control.audit.local import local_operator
    from belljar.control.audit.operation import OwnOperation, carrying_out
    from belljar.control.secrets.keys import open_keys
    from belljar.control.store.opening import open_database
    from belljar.control.store.projects import SqlProjects
    from belljar.control.store.secrets import SqlSecrets

    start_logging(settings, "error")

    async def opened() -> T:
        database = await open_database(settings, migrate=False)
        try:
            if project is not None:
                await SqlProjects(database).get(project)
            with carrying_out(OwnOperation(local_operator())):
                return await work(SqlSecrets(database), open_keys(settings))
        finally:
            await database.close()

    return run_async(opened())


async def _set_here(store: SqlSecrets, keys: KeySource, project: str, name: str, value: SecretValue) -> dict[str, Any]:
    from belljar.control.secrets.service import SecretService

    secret = await SecretService(store, keys).set(project, name, value)
    return {**secret.model_dump(mode="json"), "masked": value.is_masked}


async def _list_here(store: SqlSecrets, _keys: KeySource, project: str) -> list[dict[str, Any]]:
    return [secret.model_dump(mode="json") for secret in await store.list(project)]


async def _remove_here(store: SqlSecrets, keys: KeySource, project: str, name: str) -> dict[str, Any]:
    from belljar.control.secrets.service import SecretService

    return (await SecretService(store, keys).remove(project, name)).model_dump(mode="json")
