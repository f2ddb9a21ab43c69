"""`belljar key`: the keys of the HTTP API."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from belljar.cli import options
from belljar.cli.administration import administration, pages
from belljar.cli.flags import AdministrationFlags
from belljar.cli.printing import print_json, print_line, print_table
from belljar.model.errors import InvalidOption

app = typer.Typer(help="Keys of the HTTP API.", no_args_is_help=True)

KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `belljar key ls` shows it.")]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the key: what it is for.")],
    flags: AdministrationFlags,
    project: Annotated[
        str | None, typer.Option(help="Project of the key. Default: `default`, or that of your own key.")
    ] = None,
    role: Annotated[
        str | None, typer.Option(metavar="ROLE", help="owner, member or viewer. Default: member, without --scope.")
    ] = None,
    scope: Annotated[
        list[str] | None, typer.Option(metavar="SCOPE", help="A scope such as jobs:run. Repeatable.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="An operator's key: everything in every project.")] = False,
    expires: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Lifetime, such as 30d or 12h. Default: until revoked.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Create a key and print its secret. It is shown only this once."""
    for word in (name, project or name):
        if not _NAME.match(word):
            raise InvalidOption(f"{word[:64]!r} is not a valid name; use up to 64 letters, digits and . _ -")
    wanted = options.without_none(
        name=name,
        project=project,
        role=_one_of(role, _roles(), "--role"),
        scopes=[_one_of(each, _scopes(), "--scope") for each in scope or []],
        admin=admin,
        expires_in_seconds=options.seconds(expires, "--expires"),
    )
    with administration(flags) as admin_of:
        _print_secret(admin_of.create_key(**wanted), as_json)


@app.command("ls")
def list_keys(
    flags: AdministrationFlags,
    project: Annotated[str | None, typer.Option(help="Only keys of this project.")] = None,
    as_json: options.Json = False,
) -> None:
    """List the keys, without their secrets."""
    with administration(flags, project=project) as admin_of:
        keys = list(pages(admin_of.keys, "keys"))
    if as_json:
        print_json(keys)
        return
    print_table(
        ("ID", "NAME", "PROJECT", "ROLE", "EXPIRES", "LAST USED", "REVOKED"),
        [
            (
                key["id"],
                key["name"],
                key["project"],
                key["role"] or ", ".join(key["scopes"]),
                _minute(key["expires_at"]),
                _minute(key["last_used_at"]),
                _minute(key["revoked_at"]),
            )
            for key in keys
        ],
    )


@app.command()
def revoke(key_id: KeyId, flags: AdministrationFlags, as_json: options.Json = False) -> None:
    """Revoke a key at once."""
    with administration(flags) as admin_of:
        key = admin_of.revoke_key(key_id)
    if as_json:
        print_json(key)


@app.command()
def rotate(
    key_id: KeyId,
    flags: AdministrationFlags,
    overlap: Annotated[
        str, typer.Option(metavar="DURATION", help="How long the old secret stays valid, such as 1h; 0s: not at all.")
    ] = "1h",
    as_json: options.Json = False,
) -> None:
    """Create a key that replaces another, and print its secret. It is shown only this once."""
    seconds = 0 if overlap == "0s" else options.seconds(overlap, "--overlap")
    assert seconds is not None
    with administration(flags) as admin_of:
        _print_secret(admin_of.rotate_key(key_id, seconds), as_json)


def _print_secret(key: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(key)
    else:
        print_line(str(key["secret"]))


def _minute(at: str | None) -> str:
    return at[:16].replace("T", " ") if at else ""


def _one_of(value: str | None, known: list[str], option: str) -> str | None:
    if value is not None and value not in known:
        raise InvalidOption(f"{option} {value[:40]!r} is unknown; known: {', '.join(known)}")
    return value


def _roles() -> list[str]:
    from belljar.control.projects.scopes import Role

    return [role.value for role in Role]


def _scopes() -> list[str]:
    from belljar.control.projects.scopes import Scope

    return [scope.value for scope in Scope]
