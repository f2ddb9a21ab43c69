"""The load of `belljar bench --sustained`: its schedule, its open loop, its figures."""

from __future__ import annotations

import asyncio

import pytest

from belljar.bench import load
from belljar.bench.load import Arrivals, Sample, due_times, offer, summarise
from belljar.bench.sustained import find_python, parse_rates
from belljar.model.errors import InvalidOption


def test_jobs_are_due_at_the_rate_and_the_same_again() -> None:
    assert due_times(Arrivals.FIXED, 2, 2.9, seed=0) == [0.5, 1.0, 1.5, 2.0, 2.5]
    random = due_times(Arrivals.POISSON, 5, 400, seed=0)
    assert random == sorted(random) and random[-1] < 400
    assert len(random) == pytest.approx(2000, rel=0.1)
    assert random == due_times(Arrivals.POISSON, 5, 400, seed=0) != due_times(Arrivals.POISSON, 5, 400, seed=1)


async def test_jobs_start_when_they_are_due_although_earlier_ones_run() -> None:
    running, max_running = 0, 0
    release = asyncio.Event()

    async def job() -> str:
        nonlocal running, max_running
        running += 1
        max_running = max(max_running, running)
        if running == 3:
            release.set()
        await release.wait()
        running -= 1
        return "pool"

    samples = await offer(job, [0.0, 0.0, 0.01])
    assert max_running == 3
    assert [sample.source for sample in samples] == ["pool"] * 3
    assert all(sample.milliseconds is not None for sample in samples)


async def test_failed_refused_and_unfinished_jobs_count_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_MAX_RUNNING", 2)
    monkeypatch.setattr(load, "_LAST_SECONDS", 0.05)
    calls = 0

    async def job() -> str | None:
        nonlocal calls
        calls += 1
        if calls > 1:
            await asyncio.Event().wait()
        return None

    samples = await offer(job, [0.0, 0.01, 0.01, 0.01])
    assert calls == 3
    assert [sample.milliseconds for sample in samples] == [None] * 4


def test_the_first_quarter_of_a_run_does_not_count() -> None:
    samples = [Sample(number, 100.0 + number, "pool" if number % 2 else "snapshot") for number in range(20)]
    found = summarise("belljar", Arrivals.FIXED, 1, 20, samples, pooled=True)
    assert (found.jobs, found.failed, found.hit_rate) == (15, 0, 0.533)
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == (112.0, 118.0, 119.0)


def test_a_run_in_which_everything_failed_has_figures() -> None:
    found = summarise("runsc", Arrivals.FIXED, 1, 4, [Sample(3.0, None)], pooled=False)
    assert (found.jobs, found.failed, found.hit_rate, found.p50_ms) == (1, 1, None, 0.0)


@pytest.mark.parametrize("text", ["", "x", "1,,2", "0", "-1", "nan", "inf", "1000", ",".join(["1"] * 21)])
def test_rates_that_cannot_be_offered_are_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="--rates"):
        parse_rates(text)


def test_rates_are_a_list() -> None:
    assert parse_rates("0.5,1, 2") == (0.5, 1.0, 2.0)


def test_another_tree_needs_its_own_interpreter(tmp_path_factory: pytest.TempPathFactory) -> None:
    tree = tmp_path_factory.mktemp("tree")
    with pytest.raises(InvalidOption, match=r"has no \.venv/bin/python; run script/bootstrap there"):
        find_python(tree)
    python = tree / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert find_python(tree) == python
