"""What every link promises about secrets: only to the lease, only those of the job, in the newest version."""

from __future__ import annotations

import pytest

from belljar.control.store.projects import SqlProjects
from belljar.link.errors import LeaseLost
from belljar.link.interface import ControlLink
from belljar.link.leases import LeaseKey, NodeIdentity
from belljar.model.errors import InvalidOption, SecretMissing, SecretsKeyError
from belljar.model.secrets import SecretUse, SecretValue
from support.control_plane import ControlPlane
from support.link_calls import NODE, OTHER, claim_next

VALUE = b"hunter2\nwith \xff bytes"


@pytest.fixture(autouse=True)
async def project(control: ControlPlane) -> None:
    """The project of the jobs: only one that exists has secrets."""
    await SqlProjects(control.database).create("mine")


async def submit(control: ControlPlane, *uses: object) -> None:
    await control.submit(secrets=tuple(SecretUse.model_validate(use) for use in uses), max_attempts=3)


async def opened(link: ControlLink, lease: LeaseKey) -> dict[str, tuple[int, bytes]]:
    return {each.name: (each.version, each.value.reveal()) for each in await link.secrets(lease)}


async def test_an_attempt_is_given_the_jobs_secrets(link: ControlLink, control: ControlPlane) -> None:
    for name in ("TOKEN", "CERT", "OTHER"):
        await control.secrets.set("mine", name, SecretValue(b"old"))
        await control.secrets.set("mine", name, SecretValue(VALUE + name.encode()))
    uses = ({"name": "TOKEN"}, {"name": "TOKEN", "env": "AGAIN"}, {"name": "CERT", "as": "file"})
    await submit(control, *uses)
    lease = (await claim_next(link)).lease
    assert await opened(link, lease) == {"TOKEN": (2, VALUE + b"TOKEN"), "CERT": (2, VALUE + b"CERT")}
    job = await control.get(lease.job_id)
    assert job.secret_versions == {"TOKEN": 2, "CERT": 2}
    assert b"hunter2" not in job.model_dump_json().encode()


async def test_a_job_without_secrets_gets_none(link: ControlLink, control: ControlPlane, held: LeaseKey) -> None:
    await control.secrets.set("mine", "TOKEN", SecretValue(VALUE))
    assert await link.secrets(held) == ()


async def test_who_does_not_hold_the_lease_gets_none(link: ControlLink, control: ControlPlane) -> None:
    await control.secrets.set("mine", "TOKEN", SecretValue(VALUE))
    await submit(control, {"name": "TOKEN"})
    lease = (await claim_next(link)).lease
    for wrong in (
        LeaseKey(lease.job_id, lease.attempt + 1, NODE),
        LeaseKey(lease.job_id, lease.attempt, OTHER),
        LeaseKey(lease.job_id, lease.attempt, NodeIdentity(NODE.name, "earlier")),
    ):
        with pytest.raises(LeaseLost):
            await link.secrets(wrong)
    assert (await control.get(lease.job_id)).secret_versions == {}
    await link.requeue(lease, code="x", reason="y")
    with pytest.raises(LeaseLost):
        await link.secrets(lease)


async def test_a_lease_that_is_lost_while_they_are_opened_gives_none(
    link: ControlLink, control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    await control.secrets.set("mine", "TOKEN", SecretValue(VALUE))
    await submit(control, {"name": "TOKEN"})
    lease = (await claim_next(link)).lease
    service = control.queue.link._secrets
    open_secrets = service.open

    async def slow(*arguments: object) -> object:
        found = await open_secrets(*arguments)  # type: ignore[arg-type]
        assert await control.claims.requeue(
            NODE.name, await control.get(lease.job_id), reason="y", code="x", incarnation=NODE.incarnation
        )
        return found

    monkeypatch.setattr(service, "open", slow)
    with pytest.raises(LeaseLost):
        await link.secrets(lease)


async def test_the_next_attempt_gets_a_secret_that_was_changed_meanwhile(
    link: ControlLink, control: ControlPlane
) -> None:
    await control.secrets.set("mine", "TOKEN", SecretValue(b"old"))
    await submit(control, {"name": "TOKEN"})
    first = (await claim_next(link)).lease
    await link.secrets(first)
    await control.secrets.set("mine", "TOKEN", SecretValue(b"new"))
    await link.requeue(first, code="x", reason="y")
    second = (await claim_next(link, OTHER)).lease
    assert await opened(link, second) == {"TOKEN": (2, b"new")}
    assert (await control.get(first.job_id)).secret_versions == {"TOKEN": 2}


async def test_a_secret_that_cannot_be_given_is_named(link: ControlLink, control: ControlPlane) -> None:
    for name in ("GONE", "BINARY"):
        await control.secrets.set("mine", name, SecretValue(b"value"))
        await submit(control, {"name": name})
    await control.secrets.remove("mine", "GONE")
    await control.secrets.set("mine", "BINARY", SecretValue(b"a\0b"))
    with pytest.raises(SecretMissing, match='"GONE"'):
        await link.secrets((await claim_next(link)).lease)
    with pytest.raises(InvalidOption, match='"BINARY" has a NUL'):
        await link.secrets((await claim_next(link)).lease)


async def test_without_the_key_none_is_given(link: ControlLink, control: ControlPlane) -> None:
    await control.secrets.set("mine", "TOKEN", SecretValue(VALUE))
    control.settings.paths.secrets_key.unlink()
    await submit(control, {"name": "TOKEN"})
    with pytest.raises(SecretsKeyError):
        await link.secrets((await claim_next(link)).lease)
