"""The dashboard in Chromium: live output, search, hostile output, the playground, live lists, accessibility."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from belljar.control.jobs.blob_names import artifact_blob
from belljar.control.web.asset_files import files
from belljar.link.leases import LeaseKey, NodeIdentity
from belljar.local_server import read_admin_key
from belljar.model.job import Artifact, Job, Timings
from belljar.model.log_stream import LogStream
from belljar.model.states import Status
from support.chromium import accessibility_findings, chromium, new_page
from support.live import keep_output, listening, write_output
from support.registered_images import register
from support.served import Served, served
from support.usage import usage_of

pytestmark = [
    pytest.mark.browser,
    pytest.mark.process,
    pytest.mark.skipif(not files.has_scripts, reason="the scripts are not built: script/dashboard"),
]

HOSTILE = (
    b"<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\n"
    b"\x1b[1;31mred\x1b[0m \x1b[38;2;1;2;3mtrue\x1b[m \x1b[38;5;208morange\x1b[0m plain\n"
    b"right\xe2\x80\xaeeman\n"
    b"invalid \xff\xfe\xc3 bytes\n"
    b"\x1b]0;title\x07\x1b[2J\x1b[999;999H\x1b[?1049hgone\n"
    b"\x1b[" + b"1;" * 5000 + b"mbomb\n"
    b"bell\x07 null\x00 back\x08\n"
    b"10%\r50%\r100%\r\n"
)


COUNT_FRAMES = (
    "() => { window.frames_ = 0; const next = () => { window.frames_++; requestAnimationFrame(next) }; next() }"
)


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
    async with listening(api.services) as url, chromium() as browser, new_page(browser, url, key) as page:
        page.set_default_timeout(20_000)
        yield page


async def started(api: Served, **options: Any) -> Job:
    await api.submit(**options)
    return await api.begin()


async def finish(api: Served, job: Job, status: Status = Status.SUCCEEDED, **result: Any) -> None:
    await keep_output(api, job)
    await api.end(job, status, exit_code=0, **result)


async def rows(page: Any) -> list[str]:
    return list(await page.locator(".log-rows > div").all_text_contents())


async def test_hostile_output_is_text_with_its_colours(api: Served, page: Any) -> None:
    job = await started(api)
    write_output(api, job, HOSTILE)
    write_output(api, job, b"problem\n", LogStream.STDERR)
    await page.goto(f"/jobs/{job.id}")
    await page.get_by_text("problem").wait_for()
    shown = await rows(page)
    assert shown[0].startswith("<script>document.title='owned'</script><img")
    assert shown[1] == "red true orange plain"
    assert shown[2] == "right⟨U+202E⟩eman"
    assert shown[3] == "invalid \ufffd\ufffd\ufffd bytes"
    assert shown[4] == "gone"
    assert "\x1b" not in "".join(shown) and any(row.endswith("bomb") for row in shown)
    assert "bell␇ null␀ back␈" in shown
    assert "100%" in shown and "50%" not in "".join(shown)
    assert await page.title() != "owned"
    colours = await page.locator(".log-rows span").evaluate_all("all => all.map(each => each.className)")
    assert "b f1" in colours
    assert await page.locator(".log-rows .stderr").text_content() == "problem"
    await finish(api, job)
    await page.get_by_text("The job succeeded, exit code 0.").wait_for()
    await page.locator("#job-status .status.good").wait_for()


async def test_output_is_followed_until_somebody_scrolls_and_is_searched(api: Served, page: Any) -> None:
    job = await started(api)
    write_output(api, job, b"".join(b"line %d\n" % number for number in range(5000)))
    await page.goto(f"/jobs/{job.id}")
    await page.get_by_text("line 4999", exact=True).wait_for()
    view, follow = page.locator(".log-view"), page.get_by_role("button", name="Follow")
    assert len(await rows(page)) < 120, "only what is seen is in the page"
    await view.evaluate("view => { view.scrollTop = 0 }")
    await page.get_by_text("line 0", exact=True).wait_for()
    assert await follow.get_attribute("aria-pressed") == "false"
    write_output(api, job, b"later\n")
    await asyncio.sleep(0.3)
    assert await view.evaluate("view => view.scrollTop") == 0
    await follow.click()
    await page.get_by_text("later", exact=True).wait_for()
    search = page.get_by_label("Search in the output")
    await search.fill("LINE 123")
    await page.get_by_text("11 lines").wait_for()
    await search.press("Enter")
    await page.locator(".log-rows .current", has_text="line 123").wait_for()
    await search.press("Enter")
    await page.get_by_text("2 of 11 lines").wait_for()
    await search.press("Shift+Enter")
    await page.get_by_text("1 of 11 lines").wait_for()


async def test_endless_output_keeps_the_page_small_and_smooth(api: Served, page: Any) -> None:
    job = await started(api)
    await page.goto(f"/jobs/{job.id}")
    await page.evaluate(COUNT_FRAMES)
    line = b"\x1b[32m%07d\x1b[0m some output of an ordinary length, as programs write it\n"
    sizes = []
    for batch in range(10):
        for tenth in range(4):
            start = batch * 10_000 + tenth * 2500
            write_output(api, job, b"".join(line % number for number in range(start, start + 2500)))
            await asyncio.sleep(0.02)
        await page.get_by_text(f"{(batch + 1) * 10_000 - 1:07}").wait_for()
        sizes.append(await page.evaluate("performance.memory.usedJSHeapSize"))
    assert await page.evaluate("window.frames_") > 30, "the page has stood still"
    write_output(api, job, b"x" * 30_000_000)  # without a newline
    write_output(api, job, b"\nthe end\n")
    await page.get_by_text("the end", exact=True).wait_for()
    assert await page.evaluate("performance.memory.usedJSHeapSize") < 150_000_000
    assert "The newest" in await page.locator(".log-state").text_content()
    assert max(sizes[5:]) < 150_000_000


async def test_a_script_runs_from_the_playground_with_its_output_beside_it(api: Served, page: Any) -> None:
    await page.goto("/playground")
    editor = page.locator(".cm-content")
    await editor.click()
    await page.keyboard.press("Control+A")
    await page.keyboard.type("print('mine')")
    await page.select_option("#language", "shell")
    assert "mine" in await editor.text_content(), "what somebody wrote stays"
    await page.select_option("#language", "python")
    await page.fill("#args", "one\ntwo")
    await editor.press("Control+Enter")
    await page.get_by_role("link", name="Open the job").wait_for()
    job = await api.begin()
    assert job.args == ("one", "two")
    assert await api.services.scripts.source("default", job.script_id) == "print('mine')"
    write_output(api, job, b"mine\n")
    await page.get_by_text("mine", exact=True).last.wait_for()
    await finish(api, job)
    await page.get_by_text("The job succeeded").wait_for()
    await page.locator("summary", has_text="More options").click()
    await page.fill("#memory_mb", "much")
    await page.get_by_role("button", name="Run").click()
    await page.get_by_text("memory_mb: 'much' is no number").wait_for()
    assert await page.input_value("#memory_mb") == "much"


async def test_the_example_changes_with_the_language_until_somebody_writes(api: Served, page: Any) -> None:
    await page.goto("/playground")
    await page.locator(".cm-content", has_text="import sys").wait_for()
    await page.select_option("#language", "shell")
    await page.locator(".cm-content", has_text="echo").wait_for()


async def test_lists_and_the_overview_show_what_happens_without_a_reload(api: Served, page: Any) -> None:
    await page.goto("/jobs")
    await page.get_by_text("No jobs yet").wait_for()
    await page.evaluate("window.kept = true")
    job = await started(api, labels={"team": "red"})
    await page.get_by_role("link", name="main.py").wait_for()
    await page.locator(".status.active").wait_for()
    await finish(api, job, Status.FAILED)
    await page.locator("#jobs .status.bad").wait_for()
    await page.select_option("#status", "succeeded")
    await page.get_by_text("No job matches").wait_for()
    assert page.url.endswith("status=succeeded&language=&since=&label=") and await page.evaluate("window.kept")
    await page.goto("/")
    await page.locator("#overview canvas").nth(1).wait_for()
    await started(api)
    await page.locator(".tiles div", has_text="Running").get_by_text("1").wait_for()


async def test_artifacts_are_previewed_and_never_run(api: Served, page: Any, tmp_path: Path) -> None:
    job = await started(api, artifacts=["**"])
    png = bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
        "1f15c4890000000d49444154789c6360f8cf500f0003860180349f7db10000000049454e44ae426082"
    )
    contents = {
        "table.csv": b'name,value\n"<b>a, b</b>",2\n',
        "page.html": b"<script>document.title='owned'</script><h1>owned</h1>",
        "dot.png": png,
        "image.svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload=\"document.title='owned'\"/>",
        "program": b"\x7fELF\0\0\0",
        "a ?#%\n\u202e.txt": b"odd name\n",
    }
    lease = LeaseKey(job.id, job.attempt, NodeIdentity("w1", ""))
    assert await api.services.usage_series.put_of_job(lease, usage_of(1.0, 2.0, 3.0))
    for number, content in enumerate(contents.values()):
        await api.services.blobs.put_bytes(artifact_blob(job.id, number), content)
    kept = tuple(Artifact(path=path, size_bytes=len(content)) for path, content in contents.items())
    await finish(api, job, kept_artifacts=kept, timings=Timings(queue_ms=5, phases={"boot": 400, "run": 90}, run_ms=90))
    await page.goto(f"/jobs/{job.id}")
    for summary in await page.locator("details[data-island=preview] summary").all():
        await summary.click()
    await page.locator(".preview td", has_text="<b>a, b</b>").wait_for()
    await page.locator(".preview pre", has_text="<h1>owned</h1>").wait_for()
    await page.locator(".preview pre", has_text="onload").wait_for()
    await page.locator(".preview pre", has_text="odd name").wait_for()
    await page.get_by_text("It is no text and no picture").wait_for()
    assert await page.locator(".preview img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 1
    assert await page.title() != "owned"
    async with page.expect_download() as download:
        await page.locator("a[download]", has_text="Download").nth(2).click()
    assert Path(await (await download.value).path()).read_bytes() == contents["page.html"]
    await page.locator(".waterfall .run rect").wait_for()
    await page.locator("[data-island=job-metrics] canvas").nth(2).wait_for()


async def test_colours_are_chosen_and_kept(page: Any) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    assert await page.evaluate(background) == "rgb(247, 247, 245)"
    await page.get_by_role("button", name="Change between light and dark").click()
    assert await page.evaluate(background) == "rgb(18, 21, 22)"
    await page.goto("/jobs")
    assert await page.evaluate(background) == "rgb(18, 21, 22)"


async def test_pages_are_used_by_keyboard_and_on_a_phone(api: Served, page: Any) -> None:
    await page.goto("/jobs")
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Skip to the page"
    await page.set_viewport_size({"width": 360, "height": 740})
    for path in ("/", "/jobs", "/playground", "/account"):
        await page.goto(path)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360, path
    await page.get_by_role("button", name="Menu").click()
    await page.get_by_role("link", name="Jobs", exact=True).click()
    await page.wait_for_url(re.compile("/jobs$"))


async def test_axe_finds_nothing_in_any_page_light_and_dark(api: Served, page: Any) -> None:
    done = await started(api, labels={"team": "red"}, artifacts=["**"])
    write_output(api, done, b"\x1b[31mred\x1b[33myellow\x1b[90mgrey\x1b[42mgreen\x1b[0m\n")
    await finish(api, done, Status.FAILED, timings=Timings(queue_ms=5, phases={"boot": 4, "run": 9}))
    await api.submit()
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        for path in ("/", "/jobs", "/jobs?q=nothing", f"/jobs/{done.id}", "/playground", "/account"):
            await page.goto(path)
            await page.wait_for_load_state("networkidle") if not path.startswith("/jobs/") else None
            assert await accessibility_findings(page) == [], f"{path} {scheme}"


async def test_a_page_of_a_list_is_small(page: Any) -> None:
    sizes: list[int] = []

    async def count(response: Any) -> None:
        sizes.append((await response.request.sizes())["responseBodySize"])

    page.on("response", lambda response: asyncio.ensure_future(count(response)))
    await page.goto("/jobs", wait_until="networkidle")
    await asyncio.sleep(0.2)
    assert 0 < sum(sizes) <= 150 * 1024
