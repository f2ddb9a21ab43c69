"""Traces, by OpenTelemetry: spans from an HTTP request to the end of a job's script, sent to a collector by OTLP.

Off, nothing of OpenTelemetry is loaded and a span costs a comparison. A context crosses processes as a W3C
`traceparent`. No provider is registered globally: neither the environment nor the instrumentation of a library adds
spans.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from belljar import __version__
from belljar.model.errors import InvalidOption

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

#: https://www.w3.org/TR/trace-context/: version, trace id, span id, flags; later versions may append fields.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_MAX_TRACEPARENT = 256
#: Spans that wait for the collector; more are dropped.
_MAX_WAITING = 4096
_SHUTDOWN_SECONDS = 5.0
Attribute = str | int | float | bool

_tracer: Tracer | None = None


class NoSpan:
    """The span when tracing is off."""

    traceparent: str | None = None
    trace_id: str | None = None

    def name(self, name: str) -> None:
        """Do nothing."""

    def note(self, **attributes: Attribute | None) -> None:
        """Do nothing."""

    def fail(self, reason: str) -> None:
        """Do nothing."""


class OpenSpan(NoSpan):
    """A span that has begun."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self.traceparent = _traceparent(span)
        self.trace_id = f"{span.get_span_context().trace_id:032x}"

    def name(self, name: str) -> None:
        """Give the span another name."""
        self._span.update_name(name)

    def note(self, **attributes: Attribute | None) -> None:
        """Add attributes, those that are not None; `_` in their names stands for a dot, `__` for `_`."""
        self._span.set_attributes(_attributes(attributes))

    def fail(self, reason: str) -> None:
        """Mark the span as failed."""
        from opentelemetry.trace import StatusCode

        self._span.set_status(StatusCode.ERROR, reason)


_OFF: AbstractContextManager[NoSpan] = nullcontext(NoSpan())


def is_on() -> bool:
    """Return whether spans are recorded."""
    return _tracer is not None


def span(
    name: str, *, parent: str | None = None, kind: Literal["internal", "server"] = "internal"
) -> AbstractContextManager[NoSpan]:
    """Open a span for the block: below `parent`, a traceparent, else below the span that is open here, if any."""
    return _OFF if _tracer is None else _opened(_tracer, name, parent, kind)


@contextmanager
def _opened(tracer: Tracer, name: str, parent: str | None, kind: str) -> Iterator[NoSpan]:
    from opentelemetry.trace import SpanKind

    context = None if parent is None else _context(parent)
    span_kind = SpanKind.SERVER if kind == "server" else SpanKind.INTERNAL
    with tracer.start_as_current_span(
        name, context, span_kind, record_exception=False, set_status_on_exception=False
    ) as opened:
        yield OpenSpan(opened)


def record(
    name: str,
    begin: datetime,
    end: datetime,
    *,
    parent: str | None,
    error: str | None = None,
    **attributes: Attribute | None,
) -> str | None:
    """Record a span that is over; return its traceparent for spans below it. None when tracing is off."""
    if _tracer is None:
        return None
    context = None if parent is None else _context(parent)
    started = _tracer.start_span(name, context, attributes=_attributes(attributes), start_time=_nanoseconds(begin))
    if error is not None:
        OpenSpan(started).fail(error)
    started.end(max(_nanoseconds(begin), _nanoseconds(end)))
    return _traceparent(started)


def current() -> str | None:
    """Return the traceparent of the span that is open here; None without one."""
    if _tracer is None:
        return None
    from opentelemetry.trace import get_current_span

    opened = get_current_span()
    return _traceparent(opened) if opened.get_span_context().is_valid else None


def parse_traceparent(text: str | None) -> str | None:
    """Return a traceparent in the form of version 00; None for anything else."""
    match = _TRACEPARENT.match(text) if text and len(text) <= _MAX_TRACEPARENT else None
    if match is None or (match[1] == "00" and match[5]):
        return None
    return f"00-{match[2]}-{match[3]}-{int(match[4], 16) & 1:02x}"


def trace_id_of(traceparent: str) -> str:
    """Return the id of the trace, which logs carry as `trace_id`."""
    return traceparent[3:35]


@contextmanager
def tracing(endpoint: str | None, sample_ratio: float) -> Iterator[None]:
    """Send spans to this URL (OTLP over HTTP) while the block runs; None: tracing is off. Raises InvalidOption."""
    global _tracer
    if endpoint is None:
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ImportError:
        reason = "tracing_endpoint needs more packages; install them with: pip install 'belljar[tracing]'"
        raise InvalidOption(reason, option="tracing_endpoint") from None
    resource = Resource.create({"service.name": "belljar", "service.version": __version__})
    provider = TracerProvider(ParentBasedTraceIdRatio(sample_ratio), resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=_MAX_WAITING))
    _tracer = provider.get_tracer("belljar", __version__)
    try:
        yield
    finally:
        _tracer = None
        _shut_down(provider)


def _shut_down(provider: TracerProvider) -> None:
    """Send what waits, for some seconds at most: a collector that does not answer keeps no process from its end."""

    def shut_down() -> None:
        with contextlib.suppress(Exception):
            provider.shutdown()

    thread = threading.Thread(target=shut_down, name="traces", daemon=True)
    thread.start()
    thread.join(_SHUTDOWN_SECONDS)


def _context(traceparent: str) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    _, trace_id, span_id, flags = traceparent.split("-")
    parent = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _traceparent(span: Span) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"


def _attributes(given: dict[str, Attribute | None]) -> dict[str, Attribute]:
    dotted = {name.replace("__", "\0").replace("_", ".").replace("\0", "_"): value for name, value in given.items()}
    return {name: value for name, value in dotted.items() if value is not None}


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000
