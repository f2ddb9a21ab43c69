"""Settings of traces."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from belljar.settings.area import Area


def _endpoint(given: str | None) -> str | None:
    if given is not None:
        parts = urlsplit(given)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{given[:80]!r} is no URL such as http://127.0.0.1:4318")
    return given


class TracingSettings(Area):
    """Traces: spans from a request to the end of its script, by OpenTelemetry (see docs/metrics.md)."""

    tracing_endpoint: Annotated[str | None, AfterValidator(_endpoint)] = Field(
        None,
        description="URL of a collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`; default: "
        "no traces. Needs `pip install 'belljar[tracing]'`.",
    )
    tracing_sample_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of the requests that are traced; one with a `traceparent` has decided it."
    )
