"""The metrics of this process in Prometheus' text format: counters, histograms, the process, belljar's version."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from belljar import __version__
from belljar.model.errors import host_error
from belljar.system import counters, histograms

CONTENT_TYPE = CONTENT_TYPE_LATEST


class _Metrics(Collector):
    """The metrics of this process when they are asked for, and others that were collected before."""

    def __init__(self, others: Iterable[Metric] = ()) -> None:
        self._others = tuple(others)

    def collect(self) -> Iterator[Metric]:
        """Return them."""
        yield from _of_process()
        yield from self._others

    def describe(self) -> Iterator[Metric]:
        """Describe none: their names are not compared with those of other collectors."""
        return iter(())


def write_metrics(others: Iterable[Metric] = ()) -> bytes:
    """Return the metrics of this process, and these."""
    return generate_latest(_registry(others))


@contextmanager
def serving_metrics(address: str) -> Iterator[int]:
    """Serve the metrics of this process on HOST:PORT to whoever asks, in a thread; yield the port. Raises HostError."""
    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), _registry())
    except OSError as error:
        raise host_error(error, f"serve metrics on {address}") from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _registry(others: Iterable[Metric] = ()) -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(_Metrics(others))
    return registry


def _of_process() -> Iterator[Metric]:
    info = GaugeMetricFamily("belljar_build_info", "Always 1; the version of belljar is a label.", labels=["version"])
    info.add_metric([__version__], 1)
    yield info
    for name, values in counters.all_counts().items():
        labels = [label for label, _ in next(iter(values), ())]
        counter = CounterMetricFamily(name, counters.DESCRIPTIONS[name], labels=labels)
        for key, number in values.items():
            counter.add_metric([value for _, value in key], number)
        yield counter
    for name, observed in histograms.all_observations().items():
        description = histograms.DESCRIPTIONS[name]
        labels = [label for label, _ in next(iter(observed), ())]
        histogram = HistogramMetricFamily(name, description.text, labels=labels)
        bounds = [*map(floatToGoString, description.bounds), "+Inf"]
        for key, each in observed.items():
            buckets = list(zip(bounds, accumulate(each.counts), strict=True))
            histogram.add_metric([value for _, value in key], buckets=buckets, sum_value=each.sum)
        yield histogram
