"""Renders pages from templates, which escape every value, with a policy that runs this server's own scripts only."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse, Response

from belljar.control.projects.identity import Identity
from belljar.control.web.asset_files import files
from belljar.control.web.navigation import entries_for
from belljar.control.web.shown import FILTERS, GLOBALS

#: Chosen by the person: `light` or `dark`. Anything else: as the browser prefers.
THEME_COOKIE = "belljar_theme"
_THEMES = frozenset({"light", "dark"})
_BASE_POLICY = "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
#: `blob:` is for previews of artifacts, which a page makes of bytes that it has read.
_SCRIPTED_POLICY = f"{_BASE_POLICY}; script-src 'self'; connect-src 'self'; img-src 'self' blob:"
HEADERS = {
    "Content-Security-Policy": f"{_BASE_POLICY}; img-src 'self'",
    "Cache-Control": "no-store",
    # With no-referrer, browsers send forms of these pages with the Origin null, which no check can tell from others.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_DASHBOARD_HEADERS = {**HEADERS, "Content-Security-Policy": _SCRIPTED_POLICY}


def _asset(name: str) -> str:
    return files.url(name) or ""


def _islands(names: Iterable[str]) -> Markup:
    """Return the elements that load these scripts and their style sheets; nothing for what is not built."""
    tags = Markup()
    for name in names:
        if (style := files.url(f"{name}.css")) is not None:
            tags += Markup('<link rel="stylesheet" href="{}">\n').format(style)
        if (script := files.url(f"{name}.js")) is not None:
            tags += Markup('<script type="module" src="{}"></script>\n').format(script)
    return tags


_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(FILTERS)
_environment.globals.update(GLOBALS, asset=_asset, islands=_islands, theme=None)


def page(template: str, status: int = 200, **values: Any) -> Response:
    """Return a page without navigation and scripts: the sign-in, an error."""
    return HTMLResponse(_environment.get_template(template).render(**values), status, HEADERS)


def dashboard_page(
    request: Request,
    identity: Identity,
    template: str,
    *,
    projects: Iterable[str],
    status: int = 200,
    **values: Any,
) -> Response:
    """Return a page of the dashboard for this identity. `projects` are those that it may switch to."""
    return HTMLResponse(
        _environment.get_template(template).render(
            **_of_identity(identity),
            navigation=entries_for(identity),
            path=request.url.path,
            projects=sorted({*projects, identity.project}),
            theme=theme_of(request),
            has_scripts=files.has_scripts,
            **values,
        ),
        status,
        _DASHBOARD_HEADERS,
    )


def fragment(identity: Identity, template: str, **values: Any) -> Response:
    """Return a part of a page of the dashboard, for a page that is open."""
    text = _environment.get_template(template).render(**_of_identity(identity), **values)
    return HTMLResponse(text, 200, _DASHBOARD_HEADERS)


def _of_identity(identity: Identity) -> dict[str, Any]:
    form_token = identity.session.form_token if identity.session is not None else ""
    return {"identity": identity, "may": identity.may, "form_token": form_token}


def theme_of(request: Request) -> str | None:
    """Return the colours that the person chose; None: as the browser prefers."""
    chosen = request.cookies.get(THEME_COOKIE)
    return chosen if chosen in _THEMES else None
