"""The series of a machine's usage: bounded in length, and by what the machine had, whatever its guest says."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belljar.model.usage_series import MAX_POINTS, UsageSeries
from belljar.node.guest.channel_messages import Usage
from belljar.node.guest.usage_sampler import MachineLimits, UsageSampler
from support.examples import examples

MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def usage(cpu_us: int = 0, memory: int = 0, processes: int = 1, received: int = 0, disk: int = 0) -> Usage:
    return Usage(0, cpu_us, memory, 0, 0, disk, 0, received, 0, processes)


def sampled(*messages: Usage, limits: MachineLimits | None = None) -> UsageSeries:
    """Return the series of messages that came a second apart."""
    clock = Clock()
    sampler = UsageSampler(limits or MachineLimits(vcpus=2, memory_mb=64, network=True), clock)
    for message in messages:
        clock.now += 1
        sampler.add(message)
    return sampler.series()


def test_each_message_is_a_point_with_the_cpu_time_since_the_one_before() -> None:
    series = sampled(usage(500_000, 5 * MIB), usage(2_000_000, 3 * MIB, processes=4), usage(2_000_000))
    assert series.seconds == (1, 2, 3)
    assert series.cpu == (0.5, 1.5, 0)
    assert (series.memory_bytes, series.processes) == ((5 * MIB, 3 * MIB, 0), (1, 4, 1))
    assert (series.vcpus, series.memory_limit_bytes, series.interval_seconds) == (2, 64 * MIB, 1)


def test_a_counter_that_begins_anew_with_the_next_command_goes_on() -> None:
    assert sampled(usage(900_000), usage(300_000), usage(400_000)).cpu == (0.9, 0.3, 0.1)


def test_usage_before_the_first_command_is_none_of_its_usage() -> None:
    clock = Clock()
    sampler = UsageSampler(MachineLimits(vcpus=1, memory_mb=64), clock)
    sampler.add(usage(7_000_000))
    clock.now += 1
    sampler.add(usage(7_250_000))
    assert sampler.series().cpu == (0.25,)


def test_messages_that_come_too_often_are_dropped() -> None:
    clock = Clock()
    sampler = UsageSampler(MachineLimits(vcpus=1, memory_mb=64), clock)
    for _ in range(100_000):
        clock.now += 0.001
        sampler.add(usage())
    assert len(sampler) == pytest.approx(200, abs=2)
    assert min(after - before for before, after in pairwise(sampler.series().seconds)) >= 0.5


def test_a_full_series_has_half_the_points_at_twice_the_interval() -> None:
    clock = Clock()
    sampler = UsageSampler(MachineLimits(vcpus=1, memory_mb=64), clock)
    doubled = []
    for number in range(MAX_POINTS):
        clock.now += 1
        doubled.append(sampler.add(usage(number * 250_000, memory=number * 1000, processes=number)))
    assert doubled == [False] * (MAX_POINTS - 1) + [True]
    series = sampler.series()
    assert (len(series.seconds), series.interval_seconds) == (MAX_POINTS // 2, 2)
    assert series.seconds[:2] == (2, 4) and series.seconds[-1] == MAX_POINTS
    assert set(series.cpu[1:]) == {0.25}
    assert series.memory_bytes[:2] == (1000, 3000) and series.processes[:2] == (1, 3)


def test_a_year_is_as_long_as_an_hour() -> None:
    clock = Clock()
    sampler = UsageSampler(MachineLimits(vcpus=1, memory_mb=64), clock)
    while clock.now < 1000 + 365 * 86_400:
        clock.now += sampler.interval_seconds
        sampler.add(usage(int((clock.now - 1000) * 500_000)))
    series = sampler.series()
    assert MAX_POINTS // 2 <= len(series.seconds) <= MAX_POINTS
    assert all(value == pytest.approx(0.5, abs=0.01) for value in series.cpu)
    assert len(series.model_dump_json()) < 32 * 1024


NUMBERS = st.integers(0, (1 << 63) - 1)
MESSAGES = st.builds(Usage, *[NUMBERS] * 9, st.integers(0, (1 << 32) - 1))


@given(st.lists(st.tuples(st.floats(0, 5), MESSAGES), max_size=600), st.booleans())
@settings(max_examples=examples(30))
def test_no_guest_makes_it_longer_or_larger_than_its_machine(
    messages: list[tuple[float, Usage]], network: bool
) -> None:
    clock = Clock()
    sampler = UsageSampler(MachineLimits(vcpus=2, memory_mb=64, disk_mb=100, network=network), clock)
    for pause, message in messages:
        clock.now += pause
        sampler.add(message)
    series = UsageSeries.model_validate_json(sampler.series().model_dump_json())
    assert len(series.seconds) < MAX_POINTS
    assert all(0 <= value <= 2 for value in series.cpu)
    assert all(value <= 64 * MIB for value in series.memory_bytes)
    assert all(value <= 100 * MIB for value in series.disk_bytes)
    assert list(series.received_bytes) == sorted(series.received_bytes)
    assert network or not any(series.received_bytes + series.sent_bytes)


@pytest.mark.parametrize(
    "fields",
    [
        {"seconds": [1, 2], "cpu": [0]},
        {"seconds": [2, 1], "cpu": [0, 0]},
        {"seconds": [1], "cpu": [-1]},
        {"seconds": [1], "cpu": [float("nan")]},
        {"seconds": [float("inf")], "cpu": [0]},
        {"seconds": list(range(MAX_POINTS + 1)), "cpu": [0] * (MAX_POINTS + 1)},
    ],
)
def test_a_series_of_another_form_is_refused(fields: dict[str, list[float]]) -> None:
    rest = dict.fromkeys(
        ("memory_bytes", "disk_bytes", "processes", "received_bytes", "sent_bytes"), [0] * len(fields["seconds"])
    )
    with pytest.raises(ValueError, match=r"usage series|UsageSeries"):
        UsageSeries.model_validate({**rest, **fields})
