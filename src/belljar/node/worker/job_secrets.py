"""Gives a job's command the secrets that the job names: as variables and as files in the machine's memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from belljar.images.prefork_programs import supports_env
from belljar.link.secrets import JobSecret
from belljar.model.secrets import SecretUse
from belljar.node.guest.command import Command


def with_secrets(command: Command, uses: Collection[SecretUse], secrets: Collection[JobSecret]) -> Command:
    """Return the command with the secrets of `uses`, whose values are in `secrets`."""
    if not uses:
        return command
    values = {secret.name: secret.value for secret in secrets}
    variables = {use.variable: values[use.name] for use in uses if use.form == "env" and use.variable is not None}
    paths = {use.variable: use.path for use in uses if use.form == "file" and use.variable is not None}
    return replace(
        command,
        env={name: text for name, text in command.env.items() if name not in variables} | paths,
        secret_env=variables,
        secret_files={use.name: values[use.name] for use in uses if use.form == "file"},
        prefork=command.prefork if supports_env(command.prefork, [*variables, *paths]) else "",
    )
