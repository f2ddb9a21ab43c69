"""From options to a job: every default filled in, every value within what this place allows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from belljar.control.jobs.egress_limit import check_egress, check_packages
from belljar.model.errors import InvalidOption
from belljar.model.ids import new_id
from belljar.model.image import Image
from belljar.model.job import Job, Resources
from belljar.model.job_options import JobOptions
from belljar.model.resources import NodeLimits
from belljar.model.script import Dependencies
from belljar.model.states import Status
from belljar.packages.requirements import check_runtime
from belljar.settings import Settings

#: The agent's limits: strings of each kind (MAX_STRINGS), and bytes of all of them, less the length of a path.
MAX_AGENT_STRINGS = 8192
MAX_AGENT_BYTES = 1200 * 1024
#: The arguments of the language's command, and the variables that belljar adds.
_RESERVED_STRINGS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedScript:
    """A script, stored or not, with the requirements of its image and language."""

    script_id: str
    language: str
    entrypoint: str
    #: The default memory of its language, where that is more than the default of the settings.
    memory_mb: int | None = None
    #: The least memory of a machine with its image and language.
    min_memory_mb: int = 0
    image_digest: str | None = None
    dependencies: Dependencies | None = None

    @classmethod
    def from_image(
        cls, script_id: str, language: str, entrypoint: str, dependencies: Dependencies | None, image: Image
    ) -> ResolvedScript:
        """Return the script with what the image defines for its language.

        Raises InvalidDependencies when the script requires another version of the language than the image has.
        """
        if dependencies is not None:
            check_runtime(dependencies, image)
        defined = image.language(language)
        return cls(
            script_id=script_id,
            language=language,
            entrypoint=entrypoint,
            memory_mb=defined.memory_mb if defined else None,
            min_memory_mb=max(image.manifest.min_memory_mb, defined.min_memory_mb if defined else 0),
            image_digest=image.manifest.digest,
            dependencies=dependencies,
        )


def check_arguments(options: JobOptions, image: Image) -> None:
    """Raise InvalidOption when `args` and `env`, with those of the image, exceed the limits of a machine's agent."""
    manifest = image.manifest
    strings = {"args": len(options.args), "env": len(manifest.env.keys() | options.env.keys())}
    for option, count in strings.items():
        limit = MAX_AGENT_STRINGS - _RESERVED_STRINGS
        if count > limit:
            reason = f"{option} has {count} entries with those of the image; the maximum is {limit}"
            raise InvalidOption(reason, option=option, limit=limit)
    size = sum(len(arg.encode()) + 1 for arg in options.args)
    size += sum(len(name) + len(value.encode()) + 2 for name, value in (manifest.env | options.env).items())
    if size > MAX_AGENT_BYTES:
        reason = f"args and env have {size} bytes with those of the image; the maximum is {MAX_AGENT_BYTES}"
        raise InvalidOption(reason, option="env", limit=MAX_AGENT_BYTES)


def resolve_job(
    options: JobOptions,
    script: ResolvedScript,
    *,
    project: str,
    image: str,
    settings: Settings,
    largest: Collection[NodeLimits] = (),
) -> Job:
    """Return a new queued job, with every default filled in.

    `largest` has the limits of each node; it is empty while no node is known. Raises InvalidOption with the option, its
    limit and the limit's setting; InvalidDependencies when the project may not install packages.
    """
    resources = Resources(
        vcpus=options.vcpus or settings.default_vcpus,
        memory_mb=options.memory_mb or max(script.memory_mb or 0, script.min_memory_mb, settings.default_memory_mb),
        disk_mb=options.disk_mb,
        disk_mb_per_second=_rate("disk_mb_per_second", options, settings),
        disk_iops=_rate("disk_iops", options, settings),
        network_mbit_per_second=_rate("network_mbit_per_second", options, settings),
    )
    timeout_seconds = options.timeout_seconds or min(settings.default_timeout_seconds, settings.max_timeout_seconds)
    _check_limit("vcpus", resources.vcpus, settings.max_vcpus, "max_vcpus")
    _check_limit("memory_mb", resources.memory_mb, settings.max_memory_mb, "max_memory_mb")
    if resources.memory_mb < script.min_memory_mb:
        raise InvalidOption(
            f"memory_mb is {resources.memory_mb}; a machine for {script.language} in the image {image} needs "
            f"{script.min_memory_mb} or more",
            option="memory_mb",
            limit=script.min_memory_mb,
        )
    _check_limit("disk_mb", resources.disk_mb or 0, settings.max_disk_mb, "max_disk_mb")
    _check_limit("timeout_seconds", timeout_seconds, settings.max_timeout_seconds, "max_timeout_seconds")
    check_egress(options.egress, project, settings)
    dependencies = script.dependencies if settings.dependencies == "on" else None
    if dependencies is not None and dependencies.requirements:
        check_packages(dependencies.origin, project, settings)
    _check_nodes(resources, largest)
    return Job(
        id=new_id("job"),
        project=project,
        script_id=script.script_id,
        status=Status.QUEUED,
        created_at=datetime.now(UTC),
        language=script.language,
        entrypoint=script.entrypoint,
        image=image,
        image_digest=script.image_digest,
        resources=resources,
        timeout_seconds=timeout_seconds,
        args=options.args,
        env=options.env,
        stdin_bytes=len(options.stdin_bytes()),
        egress=options.egress,
        artifacts=options.artifacts,
        max_attempts=options.max_attempts,
        priority=options.priority,
        labels=options.labels,
        dependencies=dependencies,
        idempotency_key=options.idempotency_key,
    )


def _rate(name: str, options: JobOptions, settings: Settings) -> Any:
    """Return the limit of a rate: the option, else the default, else the maximum; None without any.

    Raises InvalidOption when the option exceeds the maximum.
    """
    option, maximum = getattr(options, name), getattr(settings, f"max_{name}")
    value = option if option is not None else getattr(settings, f"default_{name}")
    if maximum is None:
        return value
    if option is not None:
        _check_limit(name, option, maximum, f"max_{name}")
    return maximum if value is None else min(value, maximum)


def _check_limit(option: str, value: float, limit: float, setting: str) -> None:
    if value > limit:
        raise InvalidOption(
            f"{option} is {value:g}; the maximum is {limit:g} (setting {setting})", option=option, limit=limit
        )


def _check_nodes(resources: Resources, largest: Collection[NodeLimits]) -> None:
    """Raise InvalidOption when there are nodes, and none has room for all of the resources."""
    with_vcpus = [node for node in largest if resources.vcpus <= node.vcpus]
    with_memory = [node for node in with_vcpus if resources.memory_mb <= node.memory_mb]
    if not largest or any(node.disk_mb is None or (resources.disk_mb or 0) <= node.disk_mb for node in with_memory):
        return
    for option in ("vcpus", "memory_mb", "disk_mb"):
        value, limits = getattr(resources, option) or 0, [getattr(node, option) for node in largest]
        if None not in limits and value > max(limits):
            raise InvalidOption(
                f"{option} is {value}; the largest node has {max(limits)}",
                option=option,
                limit=max(limits),
            )
    option, nodes, others = "memory_mb", with_vcpus, f"{resources.vcpus} vcpus"
    if with_memory:
        option, nodes, others = "disk_mb", with_memory, f"{others} and {resources.memory_mb} MB of memory"
    limit = max(getattr(node, option) for node in nodes)
    raise InvalidOption(
        f"{option} is {getattr(resources, option)}; the largest node with {others} has {limit}",
        option=option,
        limit=limit,
    )
