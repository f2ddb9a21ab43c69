"""Traces: what is sent to a collector, and that nothing is when they are off."""

from __future__ import annotations

import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar.model.errors import InvalidOption
from belljar.system import tracing
from support.otlp_receiver import collector

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_off_nothing_is_recorded_and_nobody_is_asked() -> None:
    with tracing.tracing(None, 1.0), tracing.span("request", parent=PARENT) as span:
        span.note(a=1)
        span.name("other")
        span.fail("broken")
        assert (span.traceparent, tracing.current(), tracing.is_on()) == (None, None, False)
        assert tracing.record("x", datetime.now(UTC), datetime.now(UTC), parent=PARENT) is None


def test_spans_arrive_with_their_parents_times_and_attributes() -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    with collector() as received:
        with tracing.tracing(received.url, 1.0):
            with tracing.span("request", parent=PARENT, kind="server") as request:
                request.name("GET /v1/jobs")
                request.note(http_route="/v1/jobs", http_response_status__code=200, absent=None)
                with tracing.span("inner") as inner:
                    assert tracing.current() == inner.traceparent
                kept = tracing.current()
            recorded = tracing.record("attempt", begin, begin + timedelta(seconds=2), parent=kept, error="lost", n=1)
            tracing.record("script", begin, begin - timedelta(seconds=1), parent=recorded)
        assert not tracing.is_on()
    outer, attempt, script = received.named("GET /v1/jobs"), received.named("attempt"), received.named("script")
    assert (outer.trace_id, outer.parent_id, outer.kind) == (PARENT[3:35], PARENT[36:52], 2)
    assert outer.attributes == {"http.route": "/v1/jobs", "http.response.status_code": 200}
    assert received.named("inner").parent_id == attempt.parent_id == outer.span_id
    assert (attempt.end - attempt.begin, attempt.is_error, attempt.attributes) == (2_000_000_000, True, {"n": 1})
    assert script.parent_id == attempt.span_id and script.end == script.begin
    assert {each.trace_id for each in received.spans} == {PARENT[3:35]}
    assert received.resources[0]["service.name"] == "belljar"


def test_a_caller_that_does_not_sample_is_not_sampled_and_passes_that_on() -> None:
    unsampled = PARENT[:-2] + "00"
    with collector() as received, tracing.tracing(received.url, 1.0):
        with tracing.span("request", parent=unsampled) as span:
            assert span.traceparent is not None and span.traceparent.endswith("-00")
        tracing.record("attempt", datetime.now(UTC), datetime.now(UTC), parent=span.traceparent)
    assert received.spans == []


def test_a_ratio_of_zero_traces_only_what_its_caller_traces() -> None:
    with collector() as received, tracing.tracing(received.url, 0.0):
        with tracing.span("own"):
            pass
        with tracing.span("asked", parent=PARENT):
            pass
    assert [each.name for each in received.spans] == ["asked"]


def test_a_collector_that_is_gone_costs_nothing_but_the_spans() -> None:
    with collector() as received:
        url = received.url
    with tracing.tracing(url, 1.0), tracing.span("request"):
        pass


def test_without_the_packages_the_setting_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with (
        pytest.raises(InvalidOption, match=r"pip install 'belljar\[tracing\]'"),
        tracing.tracing("http://127.0.0.1:1", 1.0),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        (PARENT, PARENT),
        (PARENT[:-2] + "00", PARENT[:-2] + "00"),
        (PARENT[:-2] + "ff", PARENT[:-2] + "01"),
        ("cc" + PARENT[2:] + "-what-the-future-brings", PARENT),
        (PARENT + "-more", None),
        ("ff" + PARENT[2:], None),
        (PARENT.upper(), None),
        ("00-" + "0" * 32 + PARENT[35:], None),
        (PARENT[:36] + "0" * 16 + "-01", None),
        (PARENT + "\n", None),
        ("", None),
        (None, None),
        ("cc" + PARENT[2:] + "-" + "x" * 300, None),
    ],
)
def test_a_traceparent_is_parsed_strictly(text: str | None, parsed: str | None) -> None:
    assert tracing.parse_traceparent(text) == parsed


@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.*"))
def test_whatever_is_parsed_has_the_form_of_version_00(text: Any) -> None:
    parsed = tracing.parse_traceparent(text)
    assert parsed is None or (len(parsed) == 55 and tracing.parse_traceparent(parsed) == parsed)


def test_a_collector_that_does_not_answer_keeps_no_process_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    class Waiting:
        def shutdown(self) -> None:
            answered.wait(60)

    monkeypatch.setattr(tracing, "_SHUTDOWN_SECONDS", 0.05)
    tracing._shut_down(Waiting())  # type: ignore[arg-type]
    assert not answered.is_set()
    answered.set()
