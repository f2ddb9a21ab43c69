"""Sandboxes and the pages of a project in Chromium: a terminal, files, forms by keyboard, accessibility.

Their machines are processes of the agent; everything else is the real one.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from belljar.control.projects.scopes import Role
from belljar.control.web.asset_files import files
from belljar.model.sandbox import ResumeProblem
from belljar.model.secrets import SecretValue
from support.chromium import accessibility_findings, chromium, new_page
from support.live import listening
from support.registered_images import register
from support.sandbox_node import AgentNode
from support.served import Served, served

pytestmark = [
    pytest.mark.browser,
    pytest.mark.process,
    pytest.mark.skipif(not files.has_scripts, reason="the scripts are not built: script/dashboard"),
]


@dataclass(frozen=True)
class Open:
    """A page of the browser of an owner, and the server behind it."""

    page: Any
    api: Served
    node: AgentNode

    async def create(self, **options: Any) -> str:
        async with await self.api.caller_of("tenant") as caller:
            response = await caller.post("/v1/sandboxes", json=options)
        assert response.status_code == 201, response.text
        return str(response.json()["id"])

    async def screen(self) -> str:
        """Return the text of the terminal."""
        return "\n".join(await self.page.locator(".xterm-rows > div").all_text_contents())

    async def until_screen(self, pattern: str) -> str:
        """Wait until the terminal shows this."""
        await self.page.wait_for_function(
            "pattern => new RegExp(pattern).test([...document.querySelectorAll('.xterm-rows > div')]"
            ".map(row => row.textContent).join('\\n'))",
            arg=pattern,
        )
        return await self.screen()


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    register(tmp_path, "python")
    folder = tmp_path / "box"
    folder.mkdir()
    async with served(tmp_path) as api:
        node = AgentNode(api.services.sandbox_queue.link, folder)
        _, key = await api.services.keys.create("tenant", "browser", role=Role.OWNER)
        async with (
            node.running(),
            listening(api.services) as url,
            chromium() as browser,
            new_page(browser, url, key, may_be_refused=True) as page,
        ):
            page.set_default_timeout(20_000)
            yield Open(page, api, node)


async def test_a_terminal_runs_a_shell_and_shows_hostile_output_as_text(opened: Open) -> None:
    page = opened.page
    box = await opened.create()
    await page.goto(f"/sandboxes/{box}")
    await page.get_by_role("link", name="Terminal").first.click()
    await page.get_by_text("connected").wait_for()
    await page.keyboard.type("echo $((6*7))-done\n")
    await opened.until_screen("42-done")
    # True colours, a title, a link, a request for the clipboard, a tag: cells of the screen, and nothing else.
    hostile = r"printf '\033[38;2;1;200;3mgreen\033[0m\033]0;owned\007\033]8;;javascript:alert(1)\007link\033]8;;\007"
    hostile += r"\033]52;c;b3duZWQ=\007<script>document.title=1</script>\n'; tty"
    await page.keyboard.type(f"{hostile}\n")
    assert "<script>" in await opened.until_screen("/dev/pts")
    assert await page.title() == "Terminal – belljar"
    colours = await page.evaluate(
        "[...document.querySelectorAll('.xterm-rows span')].filter(cell => cell.textContent === 'green')"
        ".map(cell => getComputedStyle(cell).color)"
    )
    assert colours == ["rgb(0, 117, 0)"], "1, 200, 3 with enough contrast"
    await page.set_viewport_size({"width": 500, "height": 700})
    await page.keyboard.type("stty size\n")
    seen = await opened.until_screen(r"\n\d+ \d\d\b")
    assert int(re.findall(r"\n\d+ (\d\d)\b", seen)[-1]) < 70
    # More than a browser keeps: the shell waits, and the last line is there.
    await page.keyboard.type("seq 1 400000; echo the-end\n")
    page.set_default_timeout(120_000)
    await opened.until_screen(r"400000\nthe-end")
    await page.reload()
    await page.get_by_text("connected").wait_for()
    await page.keyboard.type("exit 3\n")
    await page.get_by_text("the shell has ended: exit code 3").wait_for()
    await page.get_by_role("button", name="New shell").click()
    await page.get_by_text("connected").wait_for()
    await page.keyboard.press("Escape")
    await page.keyboard.press("Tab")
    assert not await page.evaluate("document.activeElement.closest('.xterm') !== null")


async def test_a_pause_a_resume_and_copies_by_buttons(opened: Open) -> None:
    page = opened.page
    box = await opened.create()
    await page.goto(f"/sandboxes/{box}")
    await page.get_by_role("button", name="Pause").click()
    await page.get_by_text("Lifetime left").wait_for()
    assert await accessibility_findings(page) == []
    await page.goto(f"/sandboxes/{box}/terminal")
    opened.node.resume_problem = ResumeProblem(code="no_room", message="its node has no room")
    await page.get_by_role("button", name="Resume").click()
    await page.get_by_text("stays paused: its node has no room").wait_for()
    opened.node.resume_problem = None
    # Somebody else resumes it: the page that is open notices, and offers what is possible now.
    async with await opened.api.caller_of("tenant") as caller:
        assert (await caller.post(f"/v1/sandboxes/{box}/resume")).status_code == 200
    await page.get_by_role("button", name="Pause").wait_for()

    await opened.api.http.put("/v1/projects/tenant/quotas", json={"max_sandboxes": 2})
    await page.fill("#count", "2")
    await page.get_by_role("button", name="Fork").click()
    await page.locator("#copies").get_by_text("the maximum is 2").wait_for()
    assert await page.input_value("#count") == "2"
    await page.get_by_role("button", name="Take a snapshot").click()
    await page.get_by_role("link", name="New sandbox").click()
    await page.get_by_role("button", name="Create sandbox").click()
    await page.get_by_role("link", name="Terminal").first.wait_for()
    assert f"/sandboxes/{box}" not in page.url
    await page.goto("/snapshots")
    assert await accessibility_findings(page) == []
    await page.get_by_role("button", name="Delete…").click()
    await page.get_by_role("button", name="Delete snapshot").click()
    await page.get_by_text("No snapshots yet").wait_for()


async def test_files_are_uploaded_changed_and_removed(opened: Open, tmp_path: Path) -> None:
    page, folder = opened.page, opened.node.folder
    box = await opened.create()
    upload = tmp_path / 'a "b" <i>c.txt'
    upload.write_bytes(b"x" * 3_000_000)
    (tmp_path / "small.txt").write_text("one\n")
    await page.goto(f"/sandboxes/{box}/files/{folder}")
    await page.set_input_files("input[type=file]", [upload, tmp_path / "small.txt"])
    await page.get_by_role("link", name="small.txt", exact=True).click()
    assert (folder / upload.name).stat().st_size == 3_000_000
    await page.fill("#text", "one\ntwo\n")
    await page.get_by_role("button", name="Save").click()
    await page.wait_for_load_state()
    assert (folder / "small.txt").read_text() == "one\ntwo\n"
    await page.get_by_role("button", name="Delete…").click()
    await page.get_by_role("button", name="Delete file").click()
    await page.wait_for_url("**/files/**box")
    assert not (folder / "small.txt").exists()
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Download", exact=True).first.click()
    assert Path(await (await download.value).path()).stat().st_size == 3_000_000


async def test_forms_by_keyboard_and_a_session_that_ends_in_the_middle(opened: Open) -> None:
    page, api = opened.page, opened.api
    await page.goto("/keys")
    await page.focus("#name")
    await page.keyboard.type("ci")
    await page.keyboard.press("Enter")
    await page.get_by_text("It is shown this once").wait_for()
    secret = (await page.locator(".secret-once code").first.text_content()).strip()
    async with api.caller(secret) as caller:
        assert (await caller.get("/v1/session")).json()["name"] == "ci"
    await page.goto("/members")
    await page.fill("#email", "alice@example.com")
    key_id = next(key["id"] for key in (await api.http.get("/v1/keys")).json()["keys"] if key["name"] == "browser")
    for session in await api.services.sessions._sessions.live(person_id=None, key_id=key_id):
        assert (await api.http.delete(f"/v1/sessions/{session.id}")).status_code == 204
    await page.get_by_role("button", name="Save member").click()
    await page.get_by_role("heading", name="Not sent yet").wait_for()
    _, key = await api.services.keys.create("tenant", "again", role=Role.OWNER)
    async with page.context.expect_page() as other:
        await page.get_by_role("link", name="Sign in in another tab").click()
    tab = await other.value
    await tab.fill("#key", key)
    await tab.get_by_role("button", name="Sign in").click()
    await tab.wait_for_url("**/")
    await page.get_by_role("button", name="Send again").click()
    await page.get_by_role("button", name="Send again").click()
    await page.get_by_text("alice@example.com").wait_for()


PAGES = (
    "/sandboxes",
    "/sandboxes/new",
    "/snapshots",
    "/images",
    "/images/python",
    "/secrets",
    "/usage",
    "/keys",
    "/members",
    "/projects",
    "/projects/tenant",
    "/audit",
    "/account",
)


async def test_no_page_has_a_serious_barrier(opened: Open) -> None:
    page = opened.page
    box = await opened.create(labels={"team": "red"})
    (opened.node.folder / "notes.txt").write_text("text\n")
    await opened.api.services.secrets.set("tenant", "TOKEN", SecretValue(b"hidden"))
    of_box = ["", "/terminal", f"/files/{opened.node.folder}", f"/files/{opened.node.folder}/notes.txt"]
    found = []
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        for path in [*PAGES, *(f"/sandboxes/{box}{each}" for each in of_box)]:
            await page.goto(path)
            found += [f"{scheme} {path}: {each}" for each in await accessibility_findings(page)]
    assert not found, "\n".join(found)
