"""Groups of options that several commands share: a command takes the group as one parameter.

`command.prepare` shows the fields of a group as options of the command, and passes it the group.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from belljar.cli import options

if TYPE_CHECKING:
    from belljar.scripts.selection import Selection

#: What a job wrote, without the caches that its tools keep for their next run.
_ALL_BUT_CACHES = ("**", "!**/__pycache__", "!**/.pytest_cache", "!**/.mypy_cache", "!**/.ruff_cache", "!**/.cache")


@dataclass(frozen=True, kw_only=True)
class JobFlags:
    """What to run and how, for `belljar run` and `belljar submit`."""

    image: Annotated[str | None, typer.Option(help="Image to run in. Default: the image for the language.")] = None
    language: Annotated[
        str | None, typer.Option(help="Language of the script. Default: detected from the file name or the #! line.")
    ] = None
    entrypoint: Annotated[str | None, typer.Option(help="File to run in a folder or an archive.")] = None
    vcpus: Annotated[int | None, typer.Option(help="Virtual CPUs.", show_default=False)] = None
    memory: Annotated[int | None, typer.Option(metavar="MB", help="Memory of the machine.", show_default=False)] = None
    disk: Annotated[
        int | None, typer.Option(metavar="MB", help="Size of a scratch disk for the files that the job writes.")
    ] = None
    disk_mb_per_second: Annotated[
        float | None,
        typer.Option("--disk-mb-per-second", metavar="MB", help="Bandwidth limit of each disk, in MB per second."),
    ] = None
    disk_iops: Annotated[
        int | None, typer.Option("--disk-iops", help="Limit of each disk in operations per second (IOPS).")
    ] = None
    network_mbit_per_second: Annotated[
        float | None,
        typer.Option("--network-mbit-per-second", metavar="MBIT", help="Bandwidth limit of the job's network."),
    ] = None
    timeout: Annotated[float | None, typer.Option(metavar="S", help="Seconds until the job is stopped.")] = None
    env: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Environment variable. Repeatable.")] = None
    secret: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VARIABLE]", help="Secret to give the job as an environment variable. Repeatable."),
    ] = None
    secret_file: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VARIABLE]", help="Secret to give it as /run/secrets/NAME. Repeatable."),
    ] = None
    mask: Annotated[bool, typer.Option("--mask/--no-mask", help="Mask secrets that the job prints.")] = True
    stdin: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="File for the job's standard input; '-' reads this command's stdin."),
    ] = None
    egress: Annotated[
        str, typer.Option(metavar="none|open|HOST,…", help="What the job may reach over the network.")
    ] = "none"
    label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Label. Repeatable.")] = None
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Files of a folder to take although they are left out by default."),
    ] = None
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Files of a folder to leave out, as in .gitignore.")
    ] = None

    def job_options(self, args: list[str] | None, artifacts: list[str] | None) -> dict[str, Any]:
        """Return the given options by their names in the HTTP API. Raises InvalidOption."""
        data = options.stdin_bytes(self.stdin)
        return options.without_none(
            args=args or None,
            image=self.image,
            vcpus=self.vcpus,
            memory_mb=self.memory,
            disk_mb=self.disk,
            disk_mb_per_second=self.disk_mb_per_second,
            disk_iops=self.disk_iops,
            network_mbit_per_second=self.network_mbit_per_second,
            timeout_seconds=self.timeout,
            env=options.pairs(self.env, "--env") or None,
            secrets=[*_secrets(self.secret, "env"), *_secrets(self.secret_file, "file")] or None,
            mask_secrets=None if self.mask else False,
            stdin_base64=base64.b64encode(data).decode() if data is not None else None,
            egress=self.egress,
            artifacts=artifacts,
            labels=options.pairs(self.label, "--label") or None,
        )

    def selection(self) -> Selection:
        """Return which files of a folder make the script."""
        from belljar.scripts.selection import Selection

        return Selection(include=tuple(self.include or ()), exclude=tuple(self.exclude or ()))


def _secrets(given: list[str] | None, form: str) -> list[dict[str, str]]:
    """Return the secrets that NAME or NAME=VARIABLE arguments name, as the HTTP API takes them."""
    uses = []
    for argument in given or []:
        name, equals, variable = argument.partition("=")
        uses.append({"name": name, "as": form} | ({"env": variable} if equals else {}))
    return uses


def artifact_globs(globs: list[str] | None, *, wanted: bool) -> list[str] | None:
    """Return the artifacts to request: the globs, or all files but caches if no glob includes any and `wanted`."""
    if globs and not all(glob.startswith("!") for glob in globs):
        return globs
    return [*_ALL_BUT_CACHES, *(globs or ())] if wanted or globs else None


@dataclass(frozen=True, kw_only=True)
class ServerFlags:
    """Which server a client command talks to, and with which key."""

    server: Annotated[
        str | None,
        typer.Option("--server", metavar="URL", help="Server. Default: the one on this machine.", show_default=False),
    ] = None
    api_key: options.ApiKey = None
    ca_file: Annotated[
        Path | None,
        typer.Option("--ca-file", metavar="FILE", help="Certificate of the server's authority.", show_default=False),
    ] = None
    data_dir: options.DataDir = None


@dataclass(frozen=True, kw_only=True)
class RunServerFlags(ServerFlags):
    """The same for `belljar run`, which needs no server."""

    server: Annotated[
        str | None,
        typer.Option(
            "--server", metavar="URL", help="Run the job on this server. Default: on this machine, no server."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class AdministrationFlags(ServerFlags):
    """The same for commands that work on the data folder itself, unless a server or a key is named."""

    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="URL",
            help="Work through this server. Default: on the data folder of this machine.",
            show_default=False,
        ),
    ] = None


#: Groups whose fields become options.
GROUPS = (JobFlags, ServerFlags, RunServerFlags, AdministrationFlags)
