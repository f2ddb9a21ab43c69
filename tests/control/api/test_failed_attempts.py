"""Addresses that send invalid keys are slowed; valid keys and other addresses are not."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from belljar.control.api import failed_attempts
from belljar.control.api.failed_attempts import FailedAttempts, network_of
from belljar.control.projects.key_format import new_secret
from support.served import URL, Served, problem


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def attempts(clock: Clock) -> FailedAttempts:
    return FailedAttempts(clock)


def test_the_first_failures_are_free_and_then_the_time_doubles_to_a_minute(
    attempts: FailedAttempts, clock: Clock
) -> None:
    found = []
    for _ in range(14):
        attempts.add("10.0.0.1")
        found.append(attempts.retry_after("10.0.0.1"))
    assert found == [None] * 5 + [1, 2, 4, 8, 16, 32, 60, 60, 60]
    clock.now += 61
    assert attempts.retry_after("10.0.0.1") is None
    assert attempts.retry_after("10.0.0.2") is None


def test_an_address_without_failures_for_long_starts_again(attempts: FailedAttempts, clock: Clock) -> None:
    for _ in range(10):
        attempts.add("10.0.0.1")
    clock.now += 901
    attempts.add("10.0.0.1")
    assert attempts.retry_after("10.0.0.1") is None


def test_the_table_keeps_the_most_recent_addresses_only(
    attempts: FailedAttempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failed_attempts, "_MAX_ADDRESSES", 100)
    for number in range(1000):
        for _ in range(6):
            attempts.add(f"10.0.{number >> 8}.{number & 255}")
    assert len(attempts) == 100
    assert attempts.retry_after("10.0.0.1") is None and attempts.retry_after("10.0.3.231") == 1


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("testclient", ""),
        ("1.2.3.4\nx", ""),
    ],
)
def test_what_counts_as_one_client(host: str, network: str) -> None:
    assert network_of(host) == network


def caller(api: Served, host: str, secret: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(api.transport.app, client=(host, 40000))
    return httpx.AsyncClient(transport=transport, base_url=URL, headers={"Authorization": f"Bearer {secret}"})


async def test_a_flood_of_keys_is_slowed_and_locks_nobody_out(api: Served) -> None:
    _, valid = await api.services.keys.create("tenant", "test", scopes=frozenset({"jobs:read"}))
    for wrong in (*(new_secret() for _ in range(6)), "bj_short", "wrong"):
        async with caller(api, "198.51.100.1", wrong) as attacker:
            response = await attacker.get("/v1/jobs")
            assert response.status_code in (401, 429)
    problem_of_last = problem(response, 429, "too_many_failures")
    assert int(response.headers["retry-after"]) == problem_of_last["retry_after"] >= 1
    assert "begin with bj_" in problem_of_last["detail"]
    async with caller(api, "198.51.100.1", valid) as tenant:
        assert (await tenant.get("/v1/jobs")).status_code == 200
    async with caller(api, "198.51.100.2", "bj_wrong") as other:
        problem(await other.get("/v1/jobs"), 401, "not_authenticated")


async def test_a_slowed_address_looks_up_one_key_at_a_time(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    _, valid = await api.services.keys.create("tenant", "test", scopes=frozenset({"jobs:read"}))
    find, looking, highest = api.services.keys.find, 0, 0

    async def counted(secret: str) -> object:
        nonlocal looking, highest
        looking += 1
        highest = max(highest, looking)
        await asyncio.sleep(0.001)
        try:
            return await find(secret)
        finally:
            looking -= 1

    async def attempt(secret: str) -> int:
        async with caller(api, "198.51.100.1", secret) as client:
            return (await client.get("/v1/jobs")).status_code

    for _ in range(6):
        await attempt(new_secret())
    monkeypatch.setattr(api.services.keys, "find", counted)
    statuses = await asyncio.gather(*(attempt(new_secret()) for _ in range(20)), attempt(valid))
    assert highest == 1
    assert set(statuses[:-1]) == {429} and statuses[-1] == 200


async def test_a_key_that_is_no_whole_key_reads_no_database(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(_secret: str) -> None:
        raise AssertionError("the database was read")

    monkeypatch.setattr(api.services.keys, "find", fails)
    secret = new_secret()
    for wrong, words in ((secret[:-1], "whole"), (secret[:-1] + "!", "header"), (secret.swapcase(), "begin with")):
        async with caller(api, "198.51.100.9", wrong) as client:
            assert words in problem(await client.get("/v1/jobs"), 401, "not_authenticated")["detail"]
