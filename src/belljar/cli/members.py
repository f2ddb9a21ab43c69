"""`belljar project members`: the people in a project, and invitations."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from belljar.cli import options
from belljar.cli.administration import administration
from belljar.cli.flags import AdministrationFlags
from belljar.cli.printing import print_json, print_table

app = typer.Typer(help="The people in a project, who sign in by OpenID Connect.", no_args_is_help=True)

Project = Annotated[str, typer.Argument(help="Name of the project.")]
Email = Annotated[str, typer.Argument(help="Address of email, as the identity provider verifies it.")]


@app.command("ls")
def list_members(project: Project, flags: AdministrationFlags, as_json: options.Json = False) -> None:
    """List the members and the invitations."""
    with administration(flags) as admin_of:
        members = admin_of.members(project)["members"]
    if as_json:
        print_json(members)
        return
    print_table(
        ("EMAIL", "ROLE", "NAME", "SIGNED IN"),
        [
            (member["email"], member["role"], member["name"] or "", _signed_in(member["signed_in_at"]))
            for member in members
        ],
    )


@app.command("set")
def set_member(
    project: Project,
    email: Email,
    flags: AdministrationFlags,
    role: Annotated[str, typer.Option(metavar="ROLE", help="owner, member or viewer.")] = "member",
    as_json: options.Json = False,
) -> None:
    """Invite somebody by their address, or change their role, which ends their sessions."""
    with administration(flags) as admin_of:
        _print(admin_of.set_member(project, email, role), as_json)


@app.command("rm")
def remove_member(project: Project, email: Email, flags: AdministrationFlags, as_json: options.Json = False) -> None:
    """Remove a member or an invitation. The member's sessions end at once; keys that they created stay."""
    with administration(flags) as admin_of:
        _print(admin_of.remove_member(project, email), as_json)


def _print(member: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(member)


def _signed_in(at: str | None) -> str:
    return "invited" if at is None else at[:16].replace("T", " ")
