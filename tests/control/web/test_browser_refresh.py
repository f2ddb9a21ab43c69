"""Pages that refresh themselves in Chromium: in their own project, with the focus kept, and never stale in silence."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from belljar.control.web.asset_files import files
from belljar.local_server import read_admin_key
from support.chromium import chromium, new_page
from support.live import listening, write_output
from support.registered_images import register
from support.served import Served, served

pytestmark = [
    pytest.mark.browser,
    pytest.mark.process,
    pytest.mark.skipif(not files.has_scripts, reason="the scripts are not built: script/dashboard"),
]


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Served]:
    register(tmp_path, "python")
    async with served(tmp_path) as api:
        yield api


@pytest.fixture
async def page(api: Served) -> AsyncIterator[Any]:
    """A page of an operator's browser, at the overview."""
    key = read_admin_key(api.services.settings.data_dir)
    assert key is not None
    failed = ("htmx:afterRequest", "htmx:sendError", "Response Status Error Code 503")
    async with (
        listening(api.services) as url,
        chromium() as browser,
        new_page(browser, url, key, expected=failed) as page,
    ):
        page.set_default_timeout(20_000)
        yield page


async def test_a_page_stays_in_its_project_when_another_tab_switches(api: Served, page: Any) -> None:
    await api.services.projects.create("shop")
    await api.submit(labels={"team": "red"})
    await page.goto("/jobs")
    await page.get_by_role("link", name="main.py").wait_for()
    other = await page.context.new_page()
    await other.goto("/")
    await other.select_option("#project-switch", "shop")
    await other.locator("body[data-project=shop]").wait_for()
    async with page.expect_response(lambda response: response.request.headers.get("hx-request") == "true") as refreshed:
        await page.bring_to_front()
    assert await (await refreshed.value).text()
    assert await page.locator("body").get_attribute("data-project") == "default"
    assert await page.get_by_role("link", name="main.py").count() == 1
    await page.fill("#q", "main")
    await page.wait_for_url("**/jobs?q=main*")
    assert await page.get_by_role("link", name="main.py").count() == 1


async def test_a_page_that_cannot_be_refreshed_says_so_until_it_is(api: Served, page: Any) -> None:
    await page.goto("/jobs")
    notice = page.get_by_text("This page is not up to date")
    assert await notice.count() == 0
    await page.route("**/jobs", lambda route: route.abort())
    await notice.wait_for()
    await page.unroute("**/jobs")
    await page.route("**/jobs", lambda route: route.fulfill(status=503, body="busy"))
    await page.wait_for_timeout(4000)
    assert await notice.count() == 1
    await page.unroute("**/jobs")
    await notice.wait_for(state="detached")


async def test_a_refresh_keeps_the_focus_on_a_button_and_does_not_swallow_a_click(api: Served, page: Any) -> None:
    await api.submit()
    job = await api.begin()
    await page.goto(f"/jobs/{job.id}")
    cancel = page.get_by_role("button", name="Cancel")
    is_refresh = lambda response: response.request.headers.get("hx-request") == "true"  # noqa: E731
    await cancel.focus()
    async with page.expect_response(is_refresh):
        pass
    await page.wait_for_timeout(300)
    assert await page.evaluate("document.activeElement.textContent.trim()") == "Cancel"
    await page.locator("h1").click()
    await cancel.hover()
    await page.mouse.down()
    await page.wait_for_timeout(5000)
    await page.mouse.up()
    await page.get_by_text("It is being cancelled.").wait_for()


async def test_colours_of_hostile_output_do_not_fill_the_memory(api: Served, page: Any) -> None:
    await api.submit()
    job = await api.begin()
    await page.goto(f"/jobs/{job.id}")
    for _ in range(10):
        write_output(api, job, (b"\x1b[1mx\x1b[2my" * 200 + b"\n") * 1000)
        await page.wait_for_timeout(50)
    write_output(api, job, b"\nthe end\n")
    await page.get_by_text("the end", exact=True).wait_for(timeout=60_000)
    used = await page.evaluate("performance.memory.usedJSHeapSize")
    assert used < 150_000_000
