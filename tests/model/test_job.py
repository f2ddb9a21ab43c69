"""Valid and invalid options of jobs: every value is bounded at the edge."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from belljar.model.job_options import MAX_ARGUMENT_BYTES, MAX_STDIN_BYTES, MAX_STRING_BYTES, JobOptions, JobRequest

HUGE = 10**400
BAD = {
    "args with NUL": {"args": ["a\0b"]},
    "an argument over Linux's limit": {"args": ["x" * (MAX_STRING_BYTES + 1)]},
    "too many args": {"args": ["x"] * 5000},
    "an argument that is no text": {"args": [1]},
    "a lone surrogate": {"args": ["\ud800"]},
    "env value with NUL": {"env": {"A": "\0"}},
    "env name with NUL": {"env": {"A\0": "x"}},
    "env name with =": {"env": {"A=B": "x"}},
    "env name empty": {"env": {"": "x"}},
    "env name with a newline behind": {"env": {"A\n": "x"}},
    "env value of 1 MB": {"env": {"A": "x" * 1_000_000}},
    "env over 1 MiB together": {"env": {f"A{n}": "x" * 100_000 for n in range(11)}},
    "env that is a list": {"env": ["A=B"]},
    "stdin twice": {"stdin": "a", "stdin_base64": "YQ=="},
    "stdin too long": {"stdin": "x" * (MAX_STDIN_BYTES + 1)},
    "stdin that is no base64": {"stdin_base64": "!"},
    "image empty": {"image": ""},
    "no vcpus": {"vcpus": 0},
    "negative vcpus": {"vcpus": -1},
    "half a vcpu": {"vcpus": 0.5},
    "little memory": {"memory_mb": 63},
    "negative memory": {"memory_mb": -(10**30)},
    "vcpus beyond any number": {"vcpus": HUGE},
    "memory beyond any number": {"memory_mb": HUGE},
    "disk beyond any number": {"disk_mb": HUGE},
    "little disk": {"disk_mb": 15},
    "no time": {"timeout_seconds": 0},
    "negative time": {"timeout_seconds": -1},
    "time that is no number": {"timeout_seconds": float("nan")},
    "time without end": {"timeout_seconds": float("inf")},
    "egress": {"egress": "everything"},
    "artifact glob empty": {"artifacts": [""]},
    "artifact glob absolute": {"artifacts": ["/etc/passwd"]},
    "artifact glob going up": {"artifacts": ["a/../../b"]},
    "artifact glob that takes out nothing": {"artifacts": ["**", "!"]},
    "artifact glob that takes out above": {"artifacts": ["**", "!/etc"]},
    "artifact globs that only take out": {"artifacts": ["!**/*.log"]},
    "artifact glob with NUL": {"artifacts": ["a\0"]},
    "artifact glob too long": {"artifacts": ["x" * 1025]},
    "too many artifact globs": {"artifacts": ["x"] * 65},
    "no attempts": {"max_attempts": 0},
    "too many attempts": {"max_attempts": 11},
    "priority": {"priority": 101},
    "priority beyond any number": {"priority": HUGE},
    "label name empty": {"labels": {"": "x"}},
    "label name with a space": {"labels": {"a b": "x"}},
    "label name with a newline behind": {"labels": {"a\n": "x"}},
    "label name too long": {"labels": {"a" * 64: "x"}},
    "label value too long": {"labels": {"a": "x" * 256}},
    "too many labels": {"labels": {f"a{n}": "" for n in range(33)}},
    "idempotency key empty": {"idempotency_key": ""},
    "idempotency key too long": {"idempotency_key": "x" * 256},
    "an option that does not exist": {"memory": 64},
}


@pytest.mark.parametrize("options", BAD.values(), ids=BAD.keys())
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        JobOptions(**options)
    assert caught.value.errors()[0]["msg"]


def test_options_at_their_bounds_are_taken() -> None:
    options = JobOptions(
        args=("x" * MAX_STRING_BYTES, "", "ä"),
        env={"_A1": "x" * (MAX_STRING_BYTES - 4)},
        stdin_base64=base64.b64encode(bytes(range(256))).decode(),
        vcpus=1,
        memory_mb=64,
        disk_mb=16,
        timeout_seconds=0.001,
        artifacts=("**", "out/*.json", "a..b", "!**/__pycache__"),
        priority=-100,
        labels={"team/a": "x" * 255, "b": ""},
    )
    assert options.stdin_bytes() == bytes(range(256))
    assert JobOptions(stdin="é").stdin_bytes() == b"\xc3\xa9"
    assert JobOptions().stdin_bytes() == b""


def test_args_and_env_together_are_bounded_by_what_a_program_can_be_given() -> None:
    piece = MAX_ARGUMENT_BYTES // 16
    JobOptions(args=("x" * (piece - 1),) * 16)
    with pytest.raises(ValidationError, match="together"):
        JobOptions(args=("x" * (piece - 1),) * 16, env={"A": ""})


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=4), st.lists(st.text(max_size=20)))
def test_accepted_values_can_be_passed_to_a_program(env: dict[str, str], args: list[str]) -> None:
    try:
        options = JobOptions(env=env, args=tuple(args))
    except ValidationError:
        return
    for word in (*options.args, *options.env, *options.env.values()):
        assert b"\0" not in word.encode()
    assert not any("=" in name for name in options.env)


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"script_id": "a", "code": "b", "language": "python"},
        {"code": "print(1)"},
        {"code": "a", "language": "python", "files": {"a": "b"}},
        {"language": "python"},
    ],
)
def test_a_request_says_in_exactly_one_way_what_to_run(request_: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"script_id|language"):
        JobRequest(**request_)
