"""A real OpenID Connect provider in a process of its own (oidc/provider.mjs), and the part of a browser at it."""

from __future__ import annotations

import contextlib
import json
import selectors
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import httpx

from support.browser import Browser
from support.served import URL

CLIENT, SECRET = "belljar", "s3cret & of+the:tests"
ALICE = {"sub": "alice-1", "email": "Alice@Example.com", "email_verified": True, "name": "Alice"}
#: Where script/bootstrap --dev installs it.
MODULES = Path(sys.prefix) / "openid-provider" / "node_modules"
_START_SECONDS = 60
_REDIRECTS = 10


@dataclass(frozen=True)
class TestProvider:
    """A provider that runs."""

    __test__ = False
    issuer: str

    def control(self, **changes: Any) -> list[str]:
        """Change how it behaves. Return the paths that were requested of it so far."""
        requests: list[str] = httpx.post(f"{self.issuer}/control", json=changes, timeout=30).json()["requests"]
        return requests

    async def visit(self, url: str) -> str:
        """Sign in at the provider as a browser does, from the server's redirect to it. Return the redirect back."""
        async with httpx.AsyncClient(timeout=30) as http:
            for _ in range(_REDIRECTS):
                response = await http.get(url)
                assert response.status_code in (302, 303), response.text
                url = str(response.url.join(response.headers["location"]))
                if url.startswith(URL):
                    return url
        raise AssertionError("the provider redirects for ever")

    async def begin(self, browser: Browser, next: str = "") -> str:
        """Begin a sign-in at the server and carry it out at the provider. Return the redirect back."""
        started = await browser.get("/signin/oidc" + (f"?next={next}" if next else ""))
        assert started.status_code == 303, started.text
        return await self.visit(started.headers["location"])

    async def sign_in(self, browser: Browser, next: str = "") -> httpx.Response:
        """Sign in, and return the server's last response."""
        return await self.finish(browser, await self.begin(browser, next))

    async def finish(self, browser: Browser, url: str) -> httpx.Response:
        """Open the redirect back as a browser does, which comes from the provider's site."""
        parts = urlsplit(url)
        navigation = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        return await browser.get(f"{parts.path}?{parts.query}", **navigation)


@contextlib.contextmanager
def openid_provider(**config: Any) -> Iterator[TestProvider]:
    """Run a provider that knows this server as a client."""
    assert MODULES.is_dir(), "the provider of the tests is not installed; run script/bootstrap --dev"
    callback = f"{URL}/signin/oidc/callback"
    client = {"client_id": CLIENT, "client_secret": SECRET, "redirect_uris": [callback]}
    clients = [client, {**client, "client_id": "other"}]
    program = Path(__file__).parent / "oidc" / "provider.mjs"
    node = Path(sys.prefix) / "bin" / "node"
    command = [node, program, MODULES, json.dumps({"clients": clients, **config})]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            yield TestProvider(_issuer(process.stdout))
        finally:
            process.kill()


def _issuer(output: IO[bytes]) -> str:
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        assert selector.select(_START_SECONDS), "the provider does not start"
    word, _, issuer = output.readline().decode().strip().partition(" ")
    assert word == "ready", "the provider ended at its start"
    return issuer
