"""How many clones should wait, by the rate of jobs and the time to make a clone, and how buckets share memory."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belljar.node.machines.provision.demand import DEMAND_SECONDS, Claim, Demand, clones_for_rate, share_memory
from support.examples import examples

TIMES = st.lists(st.floats(0, 300), max_size=60).map(sorted)
SIZES = st.integers(1, 40)


def recorded(times: list[float], max_size: int = 8, refill_seconds: float = 0.4) -> Demand:
    demand = Demand()
    demand.record_refill(refill_seconds)
    for at in times:
        demand.record(at, max_size)
    return demand


@given(TIMES, SIZES, st.floats(0, 500), st.floats(0, 60))
@settings(max_examples=examples(100), deadline=None)
def test_the_target_is_bounded_and_needs_recent_demand(
    times: list[float], max_size: int, later: float, refill_seconds: float
) -> None:
    demand = recorded(times, max_size, refill_seconds)
    now = (times[-1] if times else 0.0) + later
    target = demand.target_size(now, max_size)
    assert target <= max_size
    assert (target > 0) == bool(times and now - times[-1] < DEMAND_SECONDS)


@given(TIMES.filter(bool), SIZES)
@settings(max_examples=examples(50), deadline=None)
def test_without_further_demand_the_target_only_falls_to_zero(times: list[float], max_size: int) -> None:
    demand = recorded(times, max_size)
    targets = [demand.target_size(times[-1] + later, max_size) for later in range(0, 140, 5)]
    assert targets == sorted(targets, reverse=True)
    assert targets[-1] == 0


@pytest.mark.parametrize("rate", [0.2, 1.0, 3.0, 10.0])
def test_the_rate_converges_to_that_of_steady_demand(rate: float) -> None:
    demand = recorded([number / rate for number in range(round(120 * rate))], max_size=20)
    assert demand.rate(120) == pytest.approx(rate, rel=0.15)


def test_one_demand_is_no_rate_and_keeps_one_clone() -> None:
    demand = recorded([100.0])
    assert [demand.target_size(100 + later, 8) for later in (0, 1, 30, 119, 120)] == [1, 1, 1, 1, 0]


def test_a_burst_is_expected_again_and_fades_after_half_a_minute() -> None:
    demand = recorded([100.0, 100.1, 100.2, 100.3])
    assert [demand.target_size(100 + later, 8) for later in (0.3, 30, 119)] == [4, 4, 1]
    assert demand.target_size(100.3, 3) == 3


def test_a_burst_that_no_pool_could_serve_does_not_count_in_full() -> None:
    huge, large = recorded([100 + number / 1000 for number in range(400)]), recorded([100.0] * 8)
    assert huge.target_size(101, 8) == 8
    assert huge.rate(160) == pytest.approx(large.rate(160), rel=0.1)


def test_demand_after_a_long_pause_is_judged_anew() -> None:
    demand = recorded([number / 10 for number in range(300)], max_size=20)
    demand.record(1000.0, 20)
    assert demand.target_size(1000.0, 20) == 1


@given(st.floats(0, 200), st.floats(0, 200), st.floats(0, 30))
@settings(max_examples=examples(100), deadline=None)
def test_more_jobs_need_no_fewer_clones(rate: float, more: float, refill_seconds: float) -> None:
    assert 1 <= clones_for_rate(rate, refill_seconds) <= clones_for_rate(rate + more, refill_seconds) <= 1000


def simulated_hit_rate(rate: float, refill_seconds: float, at_once: int, *, max_size: int, seed: int) -> float:
    """Return the part of jobs that find a clone in ten minutes, after the first half minute, on a virtual clock."""
    draw = random.Random(seed)
    demand, ready, now, hits, jobs = Demand(), 0, 0.0, 0, 0
    in_work: list[float] = []

    def fill(at: float) -> None:
        while len(in_work) < at_once and ready + len(in_work) < demand.target_size(at, max_size):
            heapq.heappush(in_work, at + refill_seconds * draw.uniform(0.7, 1.3))

    while (now := now + draw.expovariate(rate)) < 600:
        while in_work and in_work[0] <= now:
            made_at = heapq.heappop(in_work)
            ready += 1
            demand.record_refill(refill_seconds)
            fill(made_at)
        demand.record(now, max_size)
        if now > 30:
            jobs, hits = jobs + 1, hits + (ready > 0)
        ready = max(0, ready - 1)
        fill(now)
    return hits / jobs


@pytest.mark.parametrize(
    ("rate", "refill_seconds", "at_once"), [(1.5, 0.45, 1), (1.5, 0.6, 1), (3.0, 0.3, 1), (4.0, 0.4, 2)]
)
def test_nine_jobs_of_ten_that_come_at_random_find_a_clone(rate: float, refill_seconds: float, at_once: int) -> None:
    rates = [simulated_hit_rate(rate, refill_seconds, at_once, max_size=8, seed=seed) for seed in range(4)]
    assert min(rates) >= 0.9, rates


def test_at_a_low_rate_few_clones_suffice() -> None:
    assert simulated_hit_rate(0.1, 0.4, 1, max_size=2, seed=1) >= 0.95


CLAIMS = st.dictionaries(st.sampled_from("abcdef"), st.builds(Claim, st.integers(0, 12), st.floats(1, 300)))


@given(CLAIMS, st.floats(0, 5000))
@settings(max_examples=examples(200), deadline=None)
def test_shares_are_within_the_budget_and_the_claims(claims: dict[str, Claim], budget_mb: float) -> None:
    shares = share_memory(claims, budget_mb)
    assert shares.keys() == claims.keys()
    assert all(0 <= shares[name] <= claims[name].count for name in claims)
    assert sum(shares[name] * claims[name].each_mb for name in claims) <= budget_mb + 1e-6
    wanted = sum(claim.count * claim.each_mb for claim in claims.values())
    assert wanted > budget_mb or shares == {name: claim.count for name, claim in claims.items()}


@given(CLAIMS, st.floats(0, 5000))
@settings(max_examples=examples(200), deadline=None)
def test_no_bucket_gets_more_of_its_claim_than_another_by_over_one_clone(
    claims: dict[str, Claim], budget_mb: float
) -> None:
    equal = {name: Claim(claim.count, 40.0) for name, claim in claims.items() if claim.count}
    shares = share_memory(equal, budget_mb)
    for one in equal:
        for other in equal:
            assert (shares[one] + 1) / equal[one].count >= shares[other] / equal[other].count


def test_a_clone_that_does_not_fit_leaves_the_memory_to_smaller_ones() -> None:
    assert share_memory({"large": Claim(2, 300.0), "small": Claim(4, 40.0)}, 130) == {"large": 0, "small": 3}
