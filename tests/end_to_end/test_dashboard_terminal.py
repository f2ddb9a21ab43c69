"""A shell in a real machine through the dashboard in Chromium: pause and resume under it, too. One machine for all."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from belljar.app.worker import open_queue, open_worker
from belljar.control.api.services import open_services
from belljar.control.projects.scopes import Role
from belljar.control.web.asset_files import files
from belljar.settings import Settings
from support.chromium import chromium, new_page
from support.live import listening

pytestmark = [
    pytest.mark.vm,
    pytest.mark.browser,
    pytest.mark.skipif(not files.has_scripts, reason="the scripts are not built: script/dashboard"),
]
#: A machine under emulation, on a host that does other things.
_MILLISECONDS = 90_000
#: Columns of a terminal that are more than those in a window of 600 pixels.
_NARROW = 75


async def test_a_shell_in_a_machine_from_its_form_to_its_end(tmp_path: Path, built_images: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "images").symlink_to(built_images / "images")
    settings = Settings(data_dir=data_dir, accelerator="tcg", pool="off")
    async with open_services(settings) as services:
        queue = open_queue(services)
        worker = open_worker(services, queue, "local", with_sandboxes=True)
        tasks = [asyncio.create_task(each.run()) for each in (queue, services.sandbox_queue, worker)]
        _, secret = await services.keys.create("tenant", "test", role=Role.MEMBER)
        try:
            async with (
                listening(services) as url,
                chromium() as browser,
                new_page(browser, url, secret, may_be_refused=True) as page,
            ):
                page.set_default_timeout(_MILLISECONDS)
                await _use(page)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _use(page: Any) -> None:
    await page.goto("/sandboxes/new")
    await page.fill("#memory_mb", "128")
    await page.get_by_role("button", name="Create sandbox").click()
    await page.get_by_role("link", name="Terminal").first.wait_for()
    overview = page.url
    await page.get_by_role("button", name="Pause").wait_for()  # the page is loaded again when it runs
    await _terminal(page, overview)
    await page.keyboard.type("id -u; tty; cat /proc/sys/kernel/ostype; echo $((6*7)) > kept\n")
    shown = await _until_screen(page, r"\nLinux\n")
    assert "\n1000\n" in shown and "/dev/pts/" in shown
    await page.keyboard.type("sh -c 'echo $((50+5)) runs; exec sleep 1000'\n")
    await _until_screen(page, "\n55 runs")
    await page.keyboard.press("Control+c")
    await page.keyboard.type("echo $?; stty size\n")
    shown = await _until_screen(page, r"\n130\n\d+ \d+\n")
    assert int(re.findall(r"\n\d+ (\d+)\n", shown)[-1]) > _NARROW
    await page.set_viewport_size({"width": 600, "height": 700})
    await page.keyboard.type(
        f"until [ $(stty size | cut -d' ' -f2) -lt {_NARROW} ]; do sleep 0.1; done; echo na''rrow\n"
    )
    await _until_screen(page, "\nnarrow\n")

    await page.keyboard.type("(i=0; while :; do i=$((i+1)); echo $i > count; sleep 0.1; done) &\n")
    await page.goto(overview)
    await page.get_by_role("button", name="Pause").click()
    await page.get_by_text("Lifetime left").wait_for()
    await page.goto(f"{overview}/terminal")
    await page.get_by_role("button", name="Resume").click()
    await page.get_by_role("button", name="Pause").wait_for()
    await _terminal(page, overview)
    await page.keyboard.type("a=$(cat count); sleep 1; [ $(cat count) -gt $a ] && echo counts on $(cat kept)\n")
    await _until_screen(page, "\ncounts on 42\n")
    await page.goto(overview)
    await page.get_by_role("button", name="Delete…").click()
    await page.get_by_role("button", name="Delete sandbox").click()
    await page.get_by_text("it was deleted").first.wait_for()


async def _terminal(page: Any, overview: str) -> None:
    await page.goto(f"{overview}/terminal")
    await page.get_by_text("connected").wait_for()


async def _until_screen(page: Any, pattern: str) -> str:
    """Wait until the terminal shows this; return its text."""
    text = "[...document.querySelectorAll('.xterm-rows > div')].map(row => row.textContent.trimEnd()).join('\\n')"
    await page.wait_for_function(f"pattern => new RegExp(pattern).test({text})", arg=pattern)
    return str(await page.evaluate(text))
