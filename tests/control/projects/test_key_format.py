"""The form of a secret: what scanners find, and what is said of one that was not copied whole."""

from __future__ import annotations

import re
import secrets
import string

from hypothesis import given
from hypothesis import strategies as st

from belljar.control.projects.key_format import IN_TEXT, flaw, new_secret

BASE62 = string.digits + string.ascii_letters


def test_a_new_secret_is_whole_and_found_by_the_documented_expression() -> None:
    secret = new_secret()
    assert re.fullmatch(r"bj_[0-9A-Za-z]{49}", secret)
    assert flaw(secret) is None and secret != new_secret()
    assert IN_TEXT.search(f'{{"key": "{secret}"}}')


def test_secrets_of_earlier_releases_are_whole() -> None:
    for _ in range(50):
        earlier = "bj_" + secrets.token_urlsafe(32)
        assert flaw(earlier) is None
        assert IN_TEXT.search(f"?key={earlier}&x=1")


@given(st.integers(0, 51), st.sampled_from(BASE62))
def test_a_secret_with_another_character_is_no_whole_one(place: int, character: str) -> None:
    secret = "bj_" + "0aZ" * 14 + "7" + "0" * 6
    body = new_secret() if place % 2 else secret
    changed = body[:place] + character + body[place + 1 :]
    if changed != body and flaw(body) is None:
        assert flaw(changed) is not None


@given(st.integers(0, 51))
def test_a_truncated_secret_is_no_whole_one(length: int) -> None:
    cut = new_secret()[:length]
    # With 46 characters it looks like one of an earlier release, and is then unknown.
    assert (flaw(cut) is None) == (length == 46)


@given(st.text(max_size=600))
def test_any_text_has_a_flaw_of_one_line_that_does_not_repeat_it(text: str) -> None:
    reason = flaw(text)
    assert reason is not None and reason.isascii() and "\n" not in reason
    assert len(text) < 12 or text not in reason
