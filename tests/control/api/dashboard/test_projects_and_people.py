"""Pages of members, projects and quotas."""

from __future__ import annotations

from support.browser import Browser, fields_of
from support.served import Served


async def form(browser: Browser, path: str, **fields: str) -> dict[str, str]:
    given = fields_of(await browser.get(path))
    return {"form_token": given["form_token"], "in_project": given["in_project"], **fields}


async def test_a_member_is_invited_changed_and_removed(api: Served, owner: Browser) -> None:
    invited = await form(owner, "/members", email="Ann@Example.com", role="viewer")
    assert (await owner.send("/members", invited)).status_code == 303
    page = await owner.get("/members")
    assert "ann@example.com" in page.text and "invited" in page.text
    await owner.send("/members", await form(owner, "/members", email="ann@example.com", role="owner"))
    members = (await api.http.get("/v1/projects/tenant/members")).json()["members"]
    assert [(each["email"], each["role"]) for each in members] == [("ann@example.com", "owner")]
    removed = await owner.send("/members/remove", await form(owner, "/members", email="ann@example.com"))
    assert removed.status_code == 303 and "ann@example.com" not in (await owner.get("/members")).text
    wrong = await owner.send("/members", await form(owner, "/members", email="nobody", role="viewer"))
    assert wrong.status_code == 422 and 'value="nobody"' in wrong.text and 'aria-invalid="true"' in wrong.text


async def test_an_operator_creates_suspends_and_removes_a_project(api: Served, operator: Browser) -> None:
    created = await operator.send("/projects", await form(operator, "/projects", name="shop"))
    assert (created.status_code, created.headers["location"]) == (303, "/projects/shop")
    twice = await operator.send("/projects", await form(operator, "/projects", name="shop"))
    assert twice.status_code == 409 and 'role="alert"' in twice.text and 'value="shop"' in twice.text
    assert (await operator.send("/projects/shop/suspend", await form(operator, "/projects"))).status_code == 303
    assert "suspended" in (await operator.get("/projects")).text
    assert (await operator.send("/projects/shop/resume", await form(operator, "/projects"))).status_code == 303
    assert (await operator.send("/projects/shop/remove", await form(operator, "/projects"))).status_code == 303
    assert "being removed" in (await operator.get("/projects")).text


async def test_quotas_are_set_field_by_field(api: Served, operator: Browser) -> None:
    await api.services.projects.create("shop")
    fields = await form(
        operator, "/projects/shop", max_running_jobs="3", max_storage_mb="unlimited", keep_jobs_days="1.5"
    )
    assert (await operator.send("/projects/shop/quotas", fields)).status_code == 303
    quotas = (await api.http.get("/v1/projects/shop/quotas")).json()["quotas"]
    assert (quotas["max_running_jobs"], quotas["max_storage_mb"], quotas["keep_jobs_days"]) == (3, "unlimited", 1.5)
    assert quotas["max_queued_jobs"] is None
    fields = await form(operator, "/projects/shop", max_running_jobs="many", max_storage_mb="7")
    wrong = await operator.send("/projects/shop/quotas", fields)
    assert wrong.status_code == 422 and 'value="many"' in wrong.text and 'value="7"' in wrong.text
    assert (await api.http.get("/v1/projects/shop/quotas")).json()["quotas"]["max_running_jobs"] == 3


async def test_an_owner_sees_the_own_project_and_may_not_change_it(owner: Browser, api: Served) -> None:
    await api.services.projects.create("shop")
    page = await owner.get("/projects")
    assert "tenant" in page.text and "shop" not in page.text and "Suspend" not in page.text
    assert (await owner.get("/projects/shop")).status_code == 404
    assert "Save quotas" not in (await owner.get("/projects/tenant")).text
    assert (await owner.send("/projects/tenant/suspend", await form(owner, "/members"))).status_code == 403
