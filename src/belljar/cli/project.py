"""`belljar project`: the projects, for the operator."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from belljar.cli import members, options
from belljar.cli.administration import administration, pages
from belljar.cli.flags import AdministrationFlags
from belljar.cli.printing import print_json, print_table
from belljar.cli.quota_flags import QuotaFlags, print_quotas
from belljar.model.errors import InvalidOption

app = typer.Typer(help="Projects: each owns its scripts, jobs and keys.", no_args_is_help=True)
app.add_typer(members.app, name="members")

Name = Annotated[str, typer.Argument(help="Name of the project.")]


@app.command()
def create(name: Name, flags: AdministrationFlags, as_json: options.Json = False) -> None:
    """Create a project."""
    with administration(flags) as admin_of:
        _print(admin_of.create_project(name), as_json)


@app.command("ls")
def list_projects(flags: AdministrationFlags, as_json: options.Json = False) -> None:
    """List the projects."""
    with administration(flags) as admin_of:
        projects = list(pages(admin_of.projects, "projects"))
    if as_json:
        print_json(projects)
        return
    print_table(
        ("NAME", "CREATED", "STATE"),
        [(project["name"], project["created_at"][:16].replace("T", " "), _state(project)) for project in projects],
    )


@app.command("set")
def set_project(
    name: Name,
    flags: AdministrationFlags,
    quotas: QuotaFlags,
    suspend: Annotated[bool, typer.Option("--suspend", help="Refuse its keys, and start none of its jobs.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="End the suspension.")] = False,
    cancel_running: Annotated[
        bool, typer.Option("--cancel-running", help="With --suspend: cancel its running jobs, too.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Change the quotas of a project; suspend or resume it."""
    changes = quotas.changes()
    if suspend and resume:
        raise InvalidOption("set takes one of --suspend and --resume, not both")
    if not (suspend or resume or changes):
        raise InvalidOption("set needs --suspend, --resume or a quota such as --max-running-jobs; see --help")
    if cancel_running and not suspend:
        raise InvalidOption("--cancel-running goes with --suspend only")
    with administration(flags) as admin_of:
        shown: dict[str, Any] = admin_of.change_quotas(name, **changes) if changes else {}
        if suspend or resume:
            cancel = {"cancel_running": True} if cancel_running else {}
            shown |= admin_of.change_project(name, suspended=suspend, **cancel)
    _print(shown, as_json)


@app.command("get")
def get_project(name: Name, flags: AdministrationFlags, as_json: options.Json = False) -> None:
    """Show the limits of a project."""
    with administration(flags) as admin_of:
        shown = admin_of.quotas(name)
    if as_json:
        print_json(shown)
        return
    print_quotas(shown)


@app.command("rm")
def remove(name: Name, flags: AdministrationFlags, as_json: options.Json = False) -> None:
    """Remove a project with all of its data. Refused while jobs of it run.

    Its keys are revoked at once; the server's maintenance, or `belljar gc`, removes its jobs and scripts.
    """
    with administration(flags) as admin_of:
        _print(admin_of.remove_project(name), as_json)


def _print(project: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(project)


def _state(project: dict[str, Any]) -> str:
    if project["removed_at"]:
        return "being removed"
    return "suspended" if project["suspended_at"] else "active"
