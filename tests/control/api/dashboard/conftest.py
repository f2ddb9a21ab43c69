from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from belljar.control.projects.scopes import Role
from support.browser import Browser
from support.served import Served


@pytest.fixture
async def owner(api: Served) -> AsyncIterator[Browser]:
    """A browser with the session of an owner's key of the project `tenant`."""
    _, secret = await api.services.keys.create("tenant", "browser", role=Role.OWNER)
    async with Browser(api) as browser:
        assert (await browser.sign_in(secret)).status_code == 303
        yield browser


@pytest.fixture
async def operator(api: Served) -> AsyncIterator[Browser]:
    """A browser with the session of the operator's key."""
    async with Browser(api) as browser:
        assert (await browser.sign_in(api.http.headers["authorization"].removeprefix("Bearer "))).status_code == 303
        yield browser
