"""From a job to the plan of an attempt: every name resolved, every limit a number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from belljar.images.prefork_programs import supports_env
from belljar.link.secrets import JobSecret
from belljar.model.errors import UnknownLanguage
from belljar.model.image import Image, Language, Manifest
from belljar.model.job import Job
from belljar.node.guest.command import Command
from belljar.node.machines.protocol import MachineSpec
from belljar.node.machines.provision.shapes import round_up_shape
from belljar.node.worker.job_secrets import with_secrets
from belljar.settings import Settings

#: The job's working folder: its script's disk, with a writable layer over it.
WORKING_FOLDER = "/work"
#: The compiler's output: not in the working folder, whose files may be kept as artifacts.
OUTPUT = "/tmp/program"  # noqa: S108 (in the machine, which has one user)
_PLACEHOLDER = re.compile(r"\{(?:entrypoint|folder|stem|output)\}")
#: HOME is a folder that the agent makes, not the working folder: files that programs keep for themselves are no
#: artifacts.
DEFAULT_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/home/job",
    "LANG": "C.UTF-8",
}
_ROOT_HOME = "/root"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptDiskLayout:
    """The two filesystems on a script's disk: the script, and behind it the packages that were installed for it."""

    script_bytes: int
    layer_bytes: int
    #: The folder of the image that the packages' layer is mounted over.
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptPlan:
    """Everything that an attempt needs, resolved: no name is looked up any more."""

    machine: MachineSpec
    command: Command
    layer: ScriptDiskLayout | None = None
    #: Runs first, in the same machine; the command runs only if it succeeds.
    compile: Command | None = None
    stdin: bytes
    timeout_seconds: float
    grace_seconds: float
    boot_timeout_seconds: float
    artifacts: tuple[str, ...] = ()
    max_artifact_bytes: int = 0
    max_artifact_count: int = 0


def plan_attempt(
    job: Job,
    image: Image,
    script_disk: Path,
    stdin: bytes,
    settings: Settings,
    *,
    network: bool = False,
    env: dict[str, str] | None = None,
    secrets: Sequence[JobSecret] = (),
) -> AttemptPlan:
    """Return the plan of an attempt at `job`. The job's own variables override those of `env`.

    Raises UnknownLanguage when the image lacks the job's language.
    """
    language = image.language(job.language)
    if language is None:
        known = ", ".join(each.name for each in image.manifest.languages)
        raise UnknownLanguage(f"the image {image.name} runs {known}, not {job.language}; choose another image")
    variables = {**(env or {}), **job.env}
    args = job.args or language.default_args
    command = command_for(image, language, job.entrypoint, args, variables, settings)
    compiler = compile_command(language, job.entrypoint, command)
    return AttemptPlan(
        machine=MachineSpec(
            image=image,
            shape=round_up_shape(**job.resources.model_dump(), network=network),
            script_disk=script_disk,
        ),
        command=with_secrets(command, job.secrets, secrets),
        compile=compiler,  # it gets no secrets
        stdin=stdin,
        timeout_seconds=job.timeout_seconds,
        grace_seconds=settings.grace_seconds,
        boot_timeout_seconds=settings.boot_timeout_seconds,
        artifacts=job.artifacts,
        max_artifact_bytes=int(settings.max_artifacts_mb * 1024 * 1024),
        max_artifact_count=settings.max_artifact_count,
    )


def default_env(manifest: Manifest) -> dict[str, str]:
    """Return the environment of every command in an image, without a job's own variables."""
    home = {"HOME": _ROOT_HOME} if manifest.user.uid == 0 else {}
    return DEFAULT_ENV | home | manifest.env


def command_for(
    image: Image, language: Language, entrypoint: str, args: Sequence[str], env: Mapping[str, str], settings: Settings
) -> Command:
    """Return the command for a script of that language, whose entrypoint is a path below the working folder."""
    manifest, prefork = image.manifest, language.prefork or ""
    defaults = default_env(manifest)
    if not supports_env(prefork, (name for name, value in env.items() if defaults.get(name) != value)):
        prefork = ""
    return Command(
        argv=[*_fill_in(language.run, entrypoint), *args],
        env=defaults | dict(env),
        cwd=manifest.working_folder or WORKING_FOLDER,
        uid=manifest.user.uid,
        gid=manifest.user.gid,
        max_processes=settings.max_processes,
        prefork=prefork,
    )


def compile_command(language: Language, entrypoint: str, command: Command) -> Command | None:
    """Return the compiler's command for a script with that command; None for a language without a compiler."""
    if not language.compile:
        return None
    argv = _fill_in(language.compile, entrypoint)
    return replace(command, argv=argv, cwd=WORKING_FOLDER, keep=True, prefork="")


def _fill_in(argv: tuple[str, ...], entrypoint: str) -> list[str]:
    path = PurePosixPath(WORKING_FOLDER) / entrypoint
    values = {"{entrypoint}": str(path), "{folder}": str(path.parent), "{stem}": path.stem, "{output}": OUTPUT}
    return [_PLACEHOLDER.sub(lambda match: values[match[0]], arg) for arg in argv]
