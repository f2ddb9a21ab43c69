"""Options become a job: defaults, and limits with the name of their setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from belljar.control.jobs.resolve import ResolvedScript, check_arguments, resolve_job
from belljar.model.errors import InvalidDependencies, InvalidOption
from belljar.model.job import Job
from belljar.model.job_options import JobOptions
from belljar.model.resources import NodeLimits
from belljar.model.script import Dependencies
from belljar.model.states import Status
from belljar.settings import Settings
from support.registered_images import register

SCRIPT = ResolvedScript(script_id="a" * 64, language="python", entrypoint="main.py")


NEEDS = Dependencies(kind="pypi", requirements=("six",), origin="requirements.txt")


def resolved(
    options: dict[str, Any], largest: Collection[NodeLimits] = (), script: ResolvedScript = SCRIPT, **settings: Any
) -> Job:
    return resolve_job(
        JobOptions(**options),
        script,
        project="mine",
        image="python",
        settings=Settings(data_dir=Path("/nonexistent"), **settings),
        largest=largest,
    )


def test_defaults_are_those_of_the_settings() -> None:
    job = resolved({}, default_vcpus=3, default_memory_mb=300, default_timeout_seconds=30)
    assert (job.resources.vcpus, job.resources.memory_mb, job.resources.disk_mb) == (3, 300, None)
    assert (job.timeout_seconds, job.status, job.attempt) == (30, Status.QUEUED, 0)
    assert (job.project, job.script_id, job.image, job.language) == ("mine", "a" * 64, "python", "python")


def test_the_default_time_never_exceeds_the_longest() -> None:
    assert resolved({}, default_timeout_seconds=60, max_timeout_seconds=10).timeout_seconds == 10


def test_the_options_are_those_of_the_job() -> None:
    options = {"vcpus": 2, "memory_mb": 512, "disk_mb": 64, "timeout_seconds": 5.5, "args": ["a"], "stdin": "é"}
    job = resolved(options, [NodeLimits(vcpus=2, memory_mb=512)])
    assert job.public().items() >= {"vcpus": 2, "memory_mb": 512, "disk_mb": 64, "timeout_seconds": 5.5}.items()
    assert (job.args, job.stdin_bytes) == (("a",), 2)


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        ("vcpus", "max_vcpus"),
        ("memory_mb", "max_memory_mb"),
        ("disk_mb", "max_disk_mb"),
        ("timeout_seconds", "max_timeout_seconds"),
    ],
)
def test_over_a_maximum_the_error_names_the_option_the_limit_and_the_setting(option: str, setting: str) -> None:
    resolved({option: 100}, **{setting: 100})
    for value in (101, 2**31 - 1):
        with pytest.raises(InvalidOption, match=f"{option} is .* the maximum is 100 .*{setting}") as caught:
            resolved({option: value}, **{setting: 100})
        assert caught.value.details == {"option": option, "limit": 100}


def test_less_memory_than_the_image_needs_is_refused_with_the_number() -> None:
    script = dataclasses.replace(SCRIPT, min_memory_mb=96)
    assert resolved({"memory_mb": 96}, script=script).resources.memory_mb == 96
    assert resolved({}, script=script, default_memory_mb=64).resources.memory_mb == 96
    with pytest.raises(
        InvalidOption, match=r"memory_mb is 95, below the minimum of 96 for python in the image python"
    ) as caught:
        resolved({"memory_mb": 95}, script=script)
    assert caught.value.details == {"option": "memory_mb", "limit": 96}


@pytest.mark.parametrize("option", ["vcpus", "memory_mb"])
def test_a_job_that_no_node_can_run_is_refused(option: str) -> None:
    largest = NodeLimits(vcpus=4, memory_mb=1000)
    limit = getattr(largest, option)
    resolved({option: limit}, [largest], max_vcpus=64)
    with pytest.raises(InvalidOption, match=f"{option} is {limit + 1}.*the largest has {limit}"):
        resolved({option: limit + 1}, [largest], max_vcpus=64)


def test_a_job_has_to_fit_one_node_and_not_the_most_of_each() -> None:
    nodes = [NodeLimits(vcpus=4, memory_mb=64_000), NodeLimits(vcpus=32, memory_mb=32_000)]
    limits = {"max_vcpus": 64, "max_memory_mb": 64_000}
    resolved({"vcpus": 16, "memory_mb": 16_000}, nodes, **limits)
    resolved({"vcpus": 4, "memory_mb": 64_000}, nodes, **limits)
    with pytest.raises(InvalidOption, match=r"memory_mb is 40000.* with 16 vcpus: .* has 32000"):
        resolved({"vcpus": 16, "memory_mb": 40_000}, nodes, **limits)
    with pytest.raises(InvalidOption, match=r"vcpus is 33.*the largest has 32"):
        resolved({"vcpus": 33, "memory_mb": 100}, nodes, **limits)


def test_packages_are_refused_when_the_projects_egress_limit_denies_them() -> None:
    script = dataclasses.replace(SCRIPT, dependencies=NEEDS)
    assert resolved({}, script=script).dependencies == NEEDS
    assert resolved({}, script=script, max_egress="packages").dependencies == NEEDS
    for limit in ({"max_egress": "none"}, {"project_max_egress": {"mine": "example.org"}}):
        with pytest.raises(InvalidDependencies, match=r"requirements.txt declares packages, .*egress limit is"):
            resolved({}, script=script, **limit)
    only_version = dataclasses.replace(SCRIPT, dependencies=NEEDS.model_copy(update={"requirements": ()}))
    assert resolved({}, script=only_version, max_egress="none").dependencies is not None
    assert resolved({}, script=script, max_egress="none", dependencies="off").dependencies is None


@pytest.mark.parametrize(
    ("own", "options", "option"),
    [
        (300, {"env": {f"A{n}": "x" for n in range(7900)}}, "env"),
        (0, {"env": {f"A{n}": "x" * 120 for n in range(8000)}}, None),
        (100, {"env": {f"A{n}": "x" for n in range(7900)}}, None),
    ],
)
def test_args_and_env_are_bounded_by_what_the_agent_takes_with_the_images_own(
    tmp_path: Path, own: int, options: dict[str, Any], option: str | None
) -> None:
    image = register(tmp_path, "python")
    manifest = image.manifest.model_copy(update={"env": {f"B{n}": "x" for n in range(own)}})
    image = image.model_copy(update={"manifest": manifest})
    if option is None:
        check_arguments(JobOptions(**options), image)
        return
    with pytest.raises(InvalidOption) as refused:
        check_arguments(JobOptions(**options), image)
    assert refused.value.details["option"] == option
