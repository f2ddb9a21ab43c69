"""A flood of refused requests becomes a few rows."""

from __future__ import annotations

from belljar.control.audit.entry import ANONYMOUS, Actor, ActorKind, Entry, Outcome
from belljar.control.audit.refusals import WINDOW_SECONDS, Refusals, network_of


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def refused(address: str = "192.0.2.1", status: int = 401, actor: Actor = ANONYMOUS) -> Entry:
    return Entry(
        actor=actor, action="access.refuse", outcome=Outcome.REFUSED, address=address, details={"status": status}
    )


def test_the_first_is_written_at_once_and_the_others_as_a_number() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    for _ in range(500):
        refusals.add(refused())
    assert refusals.take() == [refused()]
    assert refusals.take() == []
    clock.seconds = WINDOW_SECONDS
    (counted,) = refusals.take()
    assert (counted.details["count"], counted.details["seconds"]) == (499, 60)
    # A flood that goes on is one row per window; one that has ended is forgotten.
    refusals.add(refused())
    assert refusals.take() == []
    clock.seconds = 2 * WINDOW_SECONDS
    assert [entry.details["count"] for entry in refusals.take()] == [1]
    clock.seconds = 3 * WINDOW_SECONDS
    assert refusals.take() == []
    refusals.add(refused())
    assert refusals.take() == [refused()]


def test_actors_statuses_and_networks_have_groups_of_their_own() -> None:
    refusals = Refusals(Clock())
    key = Actor(kind=ActorKind.KEY, id="key_1", name="ci")
    different = [
        refused(),
        refused(status=403),
        refused("192.0.2.2"),
        refused("2001:db8::1"),
        refused("2001:db8:0:1::1"),
        refused(actor=key),
    ]
    for entry in (*different, refused("2001:db8::2"), refused("192.0.2.9", actor=key)):
        refusals.add(entry)
    assert refusals.take() == different


def test_the_number_of_rows_is_bounded_whatever_addresses_come() -> None:
    refusals = Refusals(Clock())
    for number in range(5000):
        refusals.add(refused(f"10.0.{number >> 8}.{number & 255}"))
    taken = refusals.take(all_counts=True)
    assert len(taken) < 1100
    shared = [entry for entry in taken if entry.address is None]
    assert sum(entry.details.get("count", 1) for entry in shared) == 4000


def test_what_could_not_be_written_waits_for_the_next_time() -> None:
    refusals = Refusals(Clock())
    refusals.add(refused())
    refusals.put_back(refusals.take())
    assert refusals.take() == [refused()]


def test_a_network_is_an_address_of_version_4_or_a_64_of_version_6() -> None:
    assert network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff") != network_of("2001:db8:0:1::1")
    assert network_of(None) == ""
    assert network_of("testclient") == "testclient"
