"""The metrics of a process in the format of Prometheus."""

from __future__ import annotations

import threading
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from belljar import __version__
from belljar.model.errors import HostError
from belljar.system import counters, histograms
from belljar.system.exposition import serving_metrics, write_metrics


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_histograms_are_written_with_cumulative_buckets() -> None:
    before = samples(write_metrics().decode())
    for seconds in (0.001, 0.002, 0.2, 1000.0):
        histograms.observe("belljar_machine_seconds", seconds, source="test")
    after = samples(write_metrics().decode())

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted({"source": "test", **labels}.items())))
        return after[key] - before.get(key, 0)

    bucket = "belljar_machine_seconds_bucket"
    found = [grown(bucket, le=le) for le in ("0.001", "0.0025", "0.1", "0.25", "30.0", "+Inf")]
    assert found == [1, 2, 2, 3, 3, 4]
    assert grown("belljar_machine_seconds_count") == 4
    assert grown("belljar_machine_seconds_sum") == pytest.approx(1000.203)


def test_counters_end_with_total_and_labels_are_escaped() -> None:
    counters.increment("belljar_background_failures", 3, task='a"b\\c\nd')
    found = samples(write_metrics().decode())
    assert found["belljar_background_failures_total", (("task", 'a"b\\c\nd'),)] == 3
    assert found["belljar_build_info", (("version", __version__),)] == 1


def test_counters_lose_nothing_among_threads() -> None:
    before = counters.counter_value("belljar_output_bytes", stream="test")

    def count() -> None:
        for _ in range(2000):
            counters.increment("belljar_output_bytes", 2, stream="test")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.counter_value("belljar_output_bytes", stream="test") - before == 16_000


def test_a_worker_serves_its_own_metrics() -> None:
    with serving_metrics("127.0.0.1:0") as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            text = response.read().decode()
        assert "belljar_build_info" in text and "belljar_jobs{" not in text
        with pytest.raises(HostError), serving_metrics(f"127.0.0.1:{port}"):
            pass
