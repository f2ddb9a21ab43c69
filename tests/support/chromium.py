"""Debian's Chromium, driven by Playwright: pages as people get them."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from support.paths import ROOT

#: Installed by `script/dashboard --dev`.
_AXE = ROOT / ".venv/dashboard/node_modules/axe-core/axe.min.js"
#: What WCAG 2.2 AA demands, and what the authors of axe recommend beside it.
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@asynccontextmanager
async def chromium() -> AsyncIterator[Any]:
    """Yield a browser. Skips the test where it is not installed."""
    missing = "playwright is not installed: script/bootstrap --dev"
    playwright = pytest.importorskip("playwright.async_api", reason=missing)
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("chromium is not installed: script/bootstrap --dev")
    async with playwright.async_playwright() as driver:
        # Root may not use Chromium's own sandbox; the pages are our own.
        browser = await driver.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def new_page(
    browser: Any, url: str, key: str, *, may_be_refused: bool = False, expected: Sequence[str] = (), **options: Any
) -> AsyncIterator[Any]:
    """Yield a page of a new browser that has signed in. What it logs as an error fails the test at the end.

    With `may_be_refused`, responses with statuses of 400 to 499 are none, nor is what has one of the `expected` texts.
    """
    context = await browser.new_context(base_url=url, **options)
    page = await context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if is_error(message) else None)
    try:
        await page.goto("/signin")
        await page.fill("#key", key)
        await page.click("button:has-text('Sign in')")
        await page.wait_for_url(f"{url}/")
        yield page
    finally:
        await context.close()
    refusal = "the server responded with a status of 4"
    unexpected = [each for each in errors if not (may_be_refused and refusal in each)]
    unexpected = [each for each in unexpected if not any(text in each for text in expected)]
    assert not unexpected, unexpected


def is_error(message: Any) -> bool:
    """Return whether a message of the console is an error of a page.

    Responses with an error are handled by the page. Chromium itself makes styled elements in an editor's text, for a
    moment, when a selection is replaced.
    """
    expected = ("Failed to load resource", "Applying inline style")
    return message.type == "error" and not message.text.startswith(expected)


async def accessibility_findings(page: Any) -> list[str]:
    """Return what axe finds in a page: the rule, its impact, and the first place."""
    # The policy of the page allows no foreign script; the debugger's protocol adds it all the same.
    await page.evaluate(_AXE.read_text(encoding="utf-8"))
    found = await page.evaluate(f"axe.run(document, {{runOnly: {json.dumps(_RULES)}}})")
    return [f"{each['impact']} {each['id']}: {each['nodes'][0]['html'][:200]}" for each in found["violations"]]
