"""From a job to the plan of an attempt: every name resolved, every limit a number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from belljar.images.prefork_programs import supports_env
from belljar.model.errors import UnknownLanguage
from belljar.model.image import Image, Language, Manifest
from belljar.model.job import Job
from belljar.node.guest.command import Command
from belljar.node.machines.protocol import MachineSpec
from belljar.node.machines.provision.shapes import round_up_shape
from belljar.node.worker.attempt import AttemptPlan
from belljar.settings import Settings

#: Where the script's files are for the job: its own disk's, with a writable layer over them.
WORKING_FOLDER = "/work"
#: Where what was compiled goes: not into the working folder, whose files may be wanted as artifacts.
OUTPUT = "/tmp/program"  # noqa: S108 (the machine's own, which nobody else is in)
_PLACE = re.compile(r"\{(?:entrypoint|folder|stem|output)\}")
#: HOME is a folder that the agent makes, not the working folder: what programs keep for themselves is no artifact.
DEFAULT_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/home/job",
    "LANG": "C.UTF-8",
}
_ROOT_HOME = "/root"


def plan_attempt(
    job: Job,
    image: Image,
    script_disk: Path,
    stdin: bytes,
    settings: Settings,
    *,
    network: bool = False,
    env: dict[str, str] | None = None,
) -> AttemptPlan:
    """What a machine is to do for `job`, with a `network` or without; `env` is under the job's own.

    Raises UnknownLanguage when the image has not got the job's language.
    """
    language = image.language(job.language)
    if language is None:
        known = ", ".join(each.name for each in image.manifest.languages)
        raise UnknownLanguage(f"the image {image.name} runs {known}, not {job.language}; choose another image")
    asked, variables = job.resources, {**(env or {}), **job.env}
    command = command_for(image, language, job.entrypoint, job.args or language.default_args, variables, settings)
    compiler = compile_command(language, job.entrypoint, command)
    return AttemptPlan(
        machine=MachineSpec(
            image=image,
            shape=round_up_shape(**asked.model_dump(), network=network),
            script_disk=script_disk,
        ),
        command=command,
        compile=compiler,
        stdin=stdin,
        timeout_seconds=job.timeout_seconds,
        grace_seconds=settings.grace_seconds,
        boot_timeout_seconds=settings.boot_timeout_seconds,
        artifacts=job.artifacts,
        max_artifact_bytes=int(settings.max_artifacts_mb * 1024 * 1024),
        max_artifact_count=settings.max_artifact_count,
    )


def default_env(manifest: Manifest) -> dict[str, str]:
    """Return the environment of every command in an image, before a job's own."""
    home = {"HOME": _ROOT_HOME} if manifest.user.uid == 0 else {}
    return DEFAULT_ENV | home | manifest.env


def command_for(
    image: Image, language: Language, entrypoint: str, args: Sequence[str], env: Mapping[str, str], settings: Settings
) -> Command:
    """What the agent runs for a script of that language at that path below the working folder."""
    manifest, prefork = image.manifest, language.prefork or ""
    usual = default_env(manifest)
    if not supports_env(prefork, (name for name, value in env.items() if usual.get(name) != value)):
        prefork = ""
    return Command(
        argv=[*_filled(language.run, entrypoint), *args],
        env=usual | dict(env),
        cwd=manifest.working_folder or WORKING_FOLDER,
        uid=manifest.user.uid,
        gid=manifest.user.gid,
        max_processes=settings.max_processes,
        prefork=prefork,
    )


def compile_command(language: Language, entrypoint: str, command: Command) -> Command | None:
    """What the agent runs before that command; None for a language without a compiler."""
    if not language.compile:
        return None
    argv = _filled(language.compile, entrypoint)
    return replace(command, argv=argv, cwd=WORKING_FOLDER, keep=True, prefork="")


def _filled(words: tuple[str, ...], entrypoint: str) -> list[str]:
    path = PurePosixPath(WORKING_FOLDER) / entrypoint
    places = {"{entrypoint}": str(path), "{folder}": str(path.parent), "{stem}": path.stem, "{output}": OUTPUT}
    return [_PLACE.sub(lambda found: places[found[0]], word) for word in words]
