"""The form of the playground: what it submits, what it refuses, and a job as a form again."""

from __future__ import annotations

import pytest

from belljar.control.web.job_form import empty_form, form_of, request_of
from belljar.model.errors import InvalidOption
from support.job_queue import queued

CODE = {"code": "print(1)\r\nprint(2)\r\n", "language": "python"}


def test_a_form_becomes_a_submission() -> None:
    request = request_of(
        empty_form()
        | CODE
        | {"args": "a\r\nb c\r\n", "env": "A=1\r\n\r\nB=x=y", "labels": "team=red", "stdin": "one\r\ntwo"}
        | {"memory_mb": " 256 ", "timeout_seconds": "1.5", "egress": "pypi.org, *.example.org:443"}
    )
    assert request.code == "print(1)\nprint(2)\n", "a browser sends CR LF"
    assert (request.args, request.env, request.labels) == (("a", "b c"), {"A": "1", "B": "x=y"}, {"team": "red"})
    assert (request.stdin, request.memory_mb, request.vcpus, request.timeout_seconds) == ("one\ntwo", 256, None, 1.5)
    assert request.egress == ("pypi.org", "*.example.org:443")


def test_what_is_empty_gets_the_default() -> None:
    request = request_of(empty_form() | CODE)
    assert request.model_dump(exclude_defaults=True) == {"code": "print(1)\nprint(2)\n", "language": "python"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"code": " \n"}, "code is empty"),
        ({"memory_mb": "much"}, "memory_mb: 'much' is no number"),
        ({"memory_mb": "1"}, "memory_mb: "),
        ({"env": "JUST A LINE"}, "env: 'JUST A LINE' has no =; write NAME=VALUE"),
        ({"env": "0=x"}, "'0' is an invalid variable name"),
        ({"egress": "not a host!"}, "egress"),
        ({"timeout_seconds": "nan"}, "timeout_seconds"),
        ({"artifacts": "/etc/passwd"}, "leaves the working folder"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidOption, match=message.replace("'", ".").replace("(", ".")):
        request_of(empty_form() | CODE | fields)


def test_a_job_becomes_a_form_that_submits_the_same_again() -> None:
    job = queued(args=("a", "b c"), env={"A": "1"}, egress=("pypi.org",), artifacts=("out/*",), labels={"team": "red"})
    request = request_of(form_of(job, "print(1)\n", "input"))
    assert (request.code, request.language, request.stdin) == ("print(1)\n", "python", "input")
    assert (request.args, request.env, request.artifacts, request.labels) == (
        job.args,
        job.env,
        job.artifacts,
        job.labels,
    )
    assert (request.egress, request.memory_mb, request.image) == (("pypi.org",), 256, "python")
    archive = request_of(form_of(job, None, None))
    assert (archive.script_id, archive.code) == (job.script_id, None)
