"""Resolves options to a job: fills in every default, and checks every value against the limits of the settings."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from belljar.control.jobs.egress_limit import check_egress, check_packages, egress_limit_of
from belljar.model.errors import InvalidOption
from belljar.model.ids import new_id
from belljar.model.image import Image
from belljar.model.job import Job, Resources
from belljar.model.job_options import JobOptions
from belljar.model.quotas import NO_LIMITS, QuotaLimits
from belljar.model.resources import NodeLimits
from belljar.model.script import Dependencies
from belljar.model.states import Status
from belljar.packages.requirements import check_runtime
from belljar.settings import Settings
from belljar.settings.jobs import JobSettings

#: The limits of the agent: strings of each kind (MAX_STRINGS), and bytes of all strings, less those of a path.
MAX_AGENT_STRINGS = 8192
MAX_AGENT_BYTES = 1200 * 1024
#: The arguments of the command itself, and variables that belljar adds.
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
    """Raise InvalidOption when `args` and `env`, with those of the image, exceed the agent's limits."""
    manifest = image.manifest
    strings = {"args": len(options.args), "env": len(manifest.env.keys() | options.env.keys())}
    for option, count in strings.items():
        limit = MAX_AGENT_STRINGS - _RESERVED_STRINGS
        if count > limit:
            reason = f"{option} has {count} entries with those of the image; at most {limit} are allowed"
            raise InvalidOption(reason, option=option, limit=limit)
    size = sum(len(arg.encode()) + 1 for arg in options.args)
    size += sum(len(name) + len(value.encode()) + 2 for name, value in (manifest.env | options.env).items())
    if size > MAX_AGENT_BYTES:
        reason = f"args and env have {size} bytes with those of the image; at most {MAX_AGENT_BYTES} are allowed"
        raise InvalidOption(reason, option="env", limit=MAX_AGENT_BYTES)


def resolve_job(
    options: JobOptions,
    script: ResolvedScript,
    *,
    project: str,
    image: str,
    settings: Settings,
    largest: Collection[NodeLimits] = (),
    limits: QuotaLimits = NO_LIMITS,
) -> Job:
    """Return a new queued job. Raises InvalidOption that names the option, its limit and the setting or quota.

    `largest` has the limits of each node; it is empty while no node is known. `limits` are the project's.
    """
    resources = resolve_resources(
        options,
        settings,
        default_memory_mb=max(script.memory_mb or 0, script.min_memory_mb, settings.default_memory_mb),
    )
    timeout_seconds = options.timeout_seconds or min(
        settings.default_timeout_seconds, settings.max_timeout_seconds, limits.max_timeout_seconds or math.inf
    )
    needs = f"for {script.language} in the image {image}"
    check_resources(resources, settings, limits, min_memory_mb=script.min_memory_mb, needs=needs)
    _check_max("timeout_seconds", timeout_seconds, settings.max_timeout_seconds, "max_timeout_seconds")
    _check_quota("timeout_seconds", timeout_seconds, limits.max_timeout_seconds)
    egress_limit = egress_limit_of(project, settings, limits)
    check_egress(options.egress, egress_limit, settings)
    dependencies = script.dependencies if settings.dependencies == "on" else None
    if dependencies is not None and dependencies.requirements:
        check_packages(dependencies.origin, egress_limit, settings)
    check_fits(resources, largest)
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
        secrets=options.secrets,
        mask_secrets=options.mask_secrets,
        stdin_bytes=len(options.stdin_bytes()),
        egress=options.egress,
        artifacts=options.artifacts,
        max_attempts=options.max_attempts,
        priority=options.priority,
        labels=options.labels,
        dependencies=dependencies,
        idempotency_key=options.idempotency_key,
    )


class RequestedResources(Protocol):
    """Resources as a caller asked for them: `JobOptions`, or the shape of a sandbox. None: the default."""

    @property
    def vcpus(self) -> int | None: ...
    @property
    def memory_mb(self) -> int | None: ...
    @property
    def disk_mb(self) -> int | None: ...


def resolve_resources(requested: RequestedResources, settings: JobSettings, *, default_memory_mb: int) -> Resources:
    """Return the resources with all defaults. Raises InvalidOption for a rate over the settings' maximum."""
    return Resources(
        vcpus=requested.vcpus or settings.default_vcpus,
        memory_mb=requested.memory_mb or default_memory_mb,
        disk_mb=requested.disk_mb,
        disk_mb_per_second=_rate("disk_mb_per_second", requested, settings),
        disk_iops=_rate("disk_iops", requested, settings),
        network_mbit_per_second=_rate("network_mbit_per_second", requested, settings),
    )


def check_resources(
    resources: Resources, settings: JobSettings, limits: QuotaLimits, *, min_memory_mb: int, needs: str
) -> None:
    """Raise InvalidOption for resources beyond the settings or the project's quotas, or below `min_memory_mb`.

    `needs` completes "the minimum of … MB" with what needs that much.
    """
    _check_max("vcpus", resources.vcpus, settings.max_vcpus, "max_vcpus")
    _check_max("memory_mb", resources.memory_mb, settings.max_memory_mb, "max_memory_mb")
    if resources.memory_mb < min_memory_mb:
        raise InvalidOption(
            f"memory_mb is {resources.memory_mb}, below the minimum of {min_memory_mb} {needs}; set that or more",
            option="memory_mb",
            limit=min_memory_mb,
        )
    _check_max("disk_mb", resources.disk_mb or 0, settings.max_disk_mb, "max_disk_mb")
    for option in ("vcpus", "memory_mb", "disk_mb"):
        _check_quota(option, getattr(resources, option) or 0, getattr(limits, f"max_{option}"))


def _rate(name: str, options: RequestedResources, settings: JobSettings) -> Any:
    """Return the limit of a rate: the option, else the default, else the maximum of the settings; None without any.

    Raises InvalidOption for more than the maximum.
    """
    requested, maximum = getattr(options, name), getattr(settings, f"max_{name}")
    value = requested if requested is not None else getattr(settings, f"default_{name}")
    if maximum is None:
        return value
    if requested is not None:
        _check_max(name, requested, maximum, f"max_{name}")
    return maximum if value is None else min(value, maximum)


def _check_quota(option: str, value: float, limit: float | None) -> None:
    """Raise InvalidOption for what exceeds the largest machine or job of the project."""
    if limit is not None and value > limit:
        raise InvalidOption(
            f"{option} is {value:g}; the project's maximum is {limit:g} (quota max_{option})",
            option=option,
            limit=limit,
        )


def _check_max(option: str, value: float, limit: float, setting: str) -> None:
    if value > limit:
        raise InvalidOption(
            f"{option} is {value:g}; the maximum is {limit:g} (setting {setting})", option=option, limit=limit
        )


def check_fits(resources: Resources, largest: Collection[NodeLimits]) -> None:
    """Raise InvalidOption unless the resources fit on one of the nodes."""
    with_vcpus = [one for one in largest if resources.vcpus <= one.vcpus]
    with_memory = [one for one in with_vcpus if resources.memory_mb <= one.memory_mb]
    if not largest or any(one.disk_mb is None or (resources.disk_mb or 0) <= one.disk_mb for one in with_memory):
        return
    for option in ("vcpus", "memory_mb", "disk_mb"):
        value, limits = getattr(resources, option) or 0, [getattr(one, option) for one in largest]
        if None not in limits and value > max(limits):
            raise InvalidOption(
                f"{option} is {value}, more than any node can run: the largest has {max(limits)}",
                option=option,
                limit=max(limits),
            )
    option, nodes, others = "memory_mb", with_vcpus, f"{resources.vcpus} vcpus"
    if with_memory:
        option, nodes, others = (
            "disk_mb",
            with_memory,
            f"{resources.vcpus} vcpus and {resources.memory_mb} MB of memory",
        )
    limit = max(getattr(one, option) for one in nodes)
    raise InvalidOption(
        f"{option} is {getattr(resources, option)}, more than any node can run with {others}: the largest of those has "
        f"{limit}",
        option=option,
        limit=limit,
    )
