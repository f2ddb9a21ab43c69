"""What the routes of pages get: a way to answer with a page for the identity of the request."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.responses import Response

from belljar.control.api.dependencies import IdentityDep, ServicesDep
from belljar.control.api.problems import message_of
from belljar.control.api.services import Services
from belljar.control.projects.identity import Identity, IdentityKind
from belljar.control.web.form_state import FormState, rejected
from belljar.control.web.forms import MAX_FORM_BYTES, read_session_form
from belljar.control.web.pages import dashboard_page, fragment
from belljar.model.errors import BelljarError, InvalidFormToken, NotAuthenticated

#: How many projects an operator can choose from on a page; others are reached by the list of projects.
_MAX_PROJECTS = 200


class Pages:
    """The pages of one request."""

    def __init__(self, request: Request, services: Services, identity: Identity) -> None:
        self.request = request
        self.services = services
        self.identity = identity

    async def show(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """Return a page of the dashboard (`belljar.control.web.pages.dashboard_page`)."""
        projects = await self._projects()
        return dashboard_page(self.request, self.identity, template, projects=projects, status=status, **values)

    def part(self, template: str, **values: Any) -> Response:
        """Return a part of a page that is open."""
        return fragment(self.identity, template, **values)

    async def form(self, max_bytes: int = MAX_FORM_BYTES) -> dict[str, str]:
        """Return the fields of a form of these pages.

        Raises InvalidFormToken, ProjectSwitched, InvalidRequest, TooLarge.
        """
        return await read_session_form(self.request, self.identity, max_bytes)

    def rejected(
        self,
        fields: Mapping[str, str],
        error: BelljarError,
        secret: Collection[str] = (),
        *,
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> FormState:
        """Return the state of a form that was refused, to show it again; the fields in `secret` are left empty.

        `names` has the field of each option whose name differs. Raises the error if it is about the session.
        """
        if isinstance(error, NotAuthenticated | InvalidFormToken):
            raise error
        return rejected(fields, error, self.message(error), names=names, secret=secret)

    def message(self, error: BelljarError) -> str:
        """Return what the caller may know of an error."""
        return message_of(error, is_operator=self.identity.is_operator)

    @property
    def is_part(self) -> bool:
        """Return whether a page that is open requests a part of itself."""
        headers = self.request.headers
        return headers.get("hx-request") == "true" and headers.get("hx-history-restore-request") != "true"

    async def _projects(self) -> list[str]:
        if self.identity.is_operator:
            found, _ = await self.services.projects.page(_MAX_PROJECTS, None)
            return [each.name for each in found if each.removed_at is None]
        return list(self.identity.roles) if self.identity.kind is IdentityKind.PERSON else []


async def _pages(request: Request, services: ServicesDep, identity: IdentityDep) -> Pages:
    return Pages(request, services, identity)


PagesDep = Annotated[Pages, Depends(_pages)]
