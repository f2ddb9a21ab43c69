"""What a builder's end means to the job that waits for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar.node.worker.package_builder import failure_reason

NOT_FOUND = """Using CPython 3.11.2 interpreter at: /usr/bin/python3
error: No solution found when resolving dependencies
  cause: Because nope was not found in the package registry and you require nope, we can conclude that your \
requirements are unsatisfiable.

hint: Packages were unavailable because index lookups were disabled
"""
OLDER = "  × No solution found when resolving dependencies:\n  ╰─▶ Because nope was not found.\n"
UNREACHABLE = """error: Failed to fetch: http://mirror.example/simple/idna/
  cause: error sending request for url (http://mirror.example/simple/idna/)
  cause: tcp connect error
  cause: Connection refused (os error 111)
"""
NPM = """npm error code E404
npm error 404 Not Found - GET http://mirror.example/nope - Not found
npm error 404
npm error 404  'nope@*' is not in this registry.
npm error A complete log of this run can be found in: /work/cache/_logs/x.log
"""
BROKEN = """Resolved 1 package in 2ms
error: Failed to build `bad==1.0`
  cause: The build backend returned an error
  cause: Call to `backend.build_wheel` failed (exit status: 1)

         [stdout]
         looking for a compiler

         [stderr]
         no compiler here

hint: Build failures usually indicate a problem with the package or the build environment
"""


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            NOT_FOUND,
            "No solution found when resolving dependencies: Because nope was not found in the package registry",
        ),
        (OLDER, "No solution found when resolving dependencies: Because nope was not found."),
        (
            UNREACHABLE,
            "Failed to fetch: http://mirror.example/simple/idna/: Connection refused (os error 111)",
        ),
        (BROKEN, "Failed to build `bad==1.0`: Call to `backend.build_wheel` failed (exit status: 1): no compiler here"),
        (NPM, "404 Not Found - GET http://mirror.example/nope - Not found"),
        ("error: first\nerror: the packages take 6 MB", "the packages take 6 MB"),
        ("Traceback:\nValueError: x\n\n", "ValueError: x"),
        ("", "the installer printed nothing"),
    ],
)
def test_the_reason_is_the_last_error_and_its_last_cause(words: str, reason: str) -> None:
    assert failure_reason(words).startswith(reason)


@given(st.text(alphabet=st.sampled_from("error: cause:hint:×╰─▶[stderr]\n\x1b\x00 ab"), max_size=400))
def test_whatever_a_builder_says_becomes_one_printable_line(words: str) -> None:
    reason = failure_reason(words)
    assert reason.isprintable() and len(reason) <= 400
