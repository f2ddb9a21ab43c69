"""Values as pages show them: numbers with their units, and text of others in which nothing is hidden."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from belljar.control.web.shown import age, ago, between, count, duration, milliseconds, size, tone, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("report.csv", "report.csv"),
        ("naïve 日本 🚀", "naïve 日本 🚀"),
        ("exe\u202egnp.txt", "exe⟨U+202E⟩gnp.txt"),
        ("a\nb\x1b[31m\0", "a⟨U+000A⟩b⟨U+001B⟩[31m⟨U+0000⟩"),
        ("zero\u200bwidth\ufeff", "zero⟨U+200B⟩width⟨U+FEFF⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("<script>", "<script>"),  # what templates escape
    ],
)
def test_text_of_others_shows_what_cannot_be_seen(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_long_text_is_cut() -> None:
    assert visible("x" * 1_000_000, 10) == "x" * 10 + "…"
    assert len(visible("\u202e" * 1_000_000)) < 6000


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (None, "–"),
        (0.4, "0.4 ms"),
        (84.2, "84 ms"),
        (999.4, "999 ms"),
        (1234, "1.2 s"),
        (59_990, "1 min 0 s"),
        (185_000, "3 min 5 s"),
        (3_600_000, "1 h 0 min"),
        (200_000_000, "2 d 7 h"),
    ],
)
def test_durations_have_the_unit_that_fits(given: float | None, shown: str) -> None:
    assert milliseconds(given) == shown
    assert duration(None if given is None else given / 1000) == shown


@pytest.mark.parametrize(
    ("given", "shown"),
    [(None, "–"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (150 * 1024, "150 KiB"), (2**40 * 3, "3.0 TiB")],
)
def test_sizes_have_the_unit_that_fits(given: float | None, shown: str) -> None:
    assert size(given) == shown


def test_times_say_how_long_ago_they_were_and_exactly_when() -> None:
    now = datetime.now(UTC)
    assert [age(now - timedelta(seconds=each)) for each in (1, 30, 200, 7300, 200_000)] == [
        "just now",
        "30 s ago",
        "3 min ago",
        "2 h ago",
        "2 d ago",
    ]
    assert 'title="2026-01-02 03:04:05 UTC"' in ago(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert ago(None) == "never"
    assert between(now - timedelta(seconds=2), now) == "2.0 s" and between(None, now) == "–"
    assert between(now, now - timedelta(seconds=2)) == "0.0 ms", "clocks that differ"


def test_numbers_and_states() -> None:
    assert count(12304) == "12\u2009304"
    assert (tone("failed"), tone("running"), tone("unheard of")) == ("bad", "active", "muted")
    assert (tone("paused"), tone("resuming"), tone("lost")) == ("waiting", "active", "bad")
