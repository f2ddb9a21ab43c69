"""A browser without a window: it keeps cookies, follows no redirect by itself, and sends what browsers send."""

from __future__ import annotations

import html
import re

import httpx

from belljar.control.projects.scopes import Role
from belljar.model.ids import new_id
from support.served import URL, Served

ISSUER = "https://login.example"
_FIELD = re.compile(r'<input type="hidden" name="([^"]*)" value="([^"]*)"')
_KEPT = re.compile(r'<textarea name="([^"]*)" hidden>\n(.*?)</textarea>', re.DOTALL)
_ACCEPT = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


class Browser:
    """One browser with its cookies. Pages of the server send its requests, unless a header says otherwise."""

    def __init__(self, api: Served, url: str = URL) -> None:
        self.http = httpx.AsyncClient(transport=api.transport, base_url=url)

    async def __aenter__(self) -> Browser:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.http.aclose()

    async def get(self, path: str, **headers: str) -> httpx.Response:
        sent = {"Accept": _ACCEPT, "Sec-Fetch-Site": "same-origin", **headers}
        return await self.http.get(path, headers=_given(sent))

    async def send(self, path: str, fields: dict[str, str], **headers: str) -> httpx.Response:
        """Send a form of a page of the server."""
        sent = {"Accept": _ACCEPT, "Sec-Fetch-Site": "same-origin", "Origin": str(self.http.base_url), **headers}
        return await self.http.post(path, data=fields, headers=_given(sent))

    async def sign_in(self, key: str, **fields: str) -> httpx.Response:
        return await self.send("/signin", {"key": key, **fields})

    async def sign_in_as(self, api: Served, email: str, roles: dict[str, Role]) -> None:
        """Get the session of a person with these roles, as the sign-in by OpenID Connect gives it."""
        for project, role in roles.items():
            if not await api.services.projects.exists(project):
                await api.services.projects.create(project)
            await api.http.put(f"/v1/projects/{project}/members/{email}", json={"role": role.value})
        person = await api.services.people.sign_in(
            issuer=ISSUER, subject=email, email=email, name="", is_operator=False
        )
        assert person is not None
        _, secret = await api.services.sessions.start_for(person, state=new_id("state"), address="", browser="")
        self.http.cookies.set("belljar_session", secret)

    async def form_token(self) -> str:
        return fields_of(await self.get("/account"))["form_token"]

    @property
    def cookie(self) -> str | None:
        """Return the secret of the session."""
        return next((each.value for each in self.http.cookies.jar if each.name.endswith("belljar_session")), None)


def fields_of(page: httpx.Response) -> dict[str, str]:
    """Return the hidden fields of the forms of a page."""
    found = _FIELD.findall(page.text) + _KEPT.findall(page.text)
    return {html.unescape(name): html.unescape(value) for name, value in found}


def _given(headers: dict[str, str]) -> dict[str, str]:
    """Return the headers, those with the value "" left out."""
    return {name.replace("_", "-"): value for name, value in headers.items() if value}
