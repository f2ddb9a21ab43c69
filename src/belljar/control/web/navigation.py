"""The navigation of the dashboard: its pages, and the scope that each of them requires."""

from __future__ import annotations

from dataclasses import dataclass

from belljar.control.projects.identity import Identity
from belljar.control.projects.scopes import Scope


@dataclass(frozen=True, slots=True)
class Entry:
    """A page that the navigation leads to."""

    title: str
    path: str
    #: What the page's own rule requires; None: nothing.
    scope: Scope | None


#: Groups of pages, in the order in which they are shown.
GROUPS: tuple[tuple[Entry, ...], ...] = (
    (
        Entry("Overview", "/", Scope.JOBS_READ),
        Entry("Jobs", "/jobs", Scope.JOBS_READ),
        Entry("Playground", "/playground", Scope.JOBS_RUN),
    ),
    (
        Entry("Sandboxes", "/sandboxes", Scope.SANDBOXES),
        Entry("Snapshots", "/snapshots", Scope.SANDBOXES),
        Entry("Images", "/images", Scope.IMAGES_READ),
        Entry("Secrets", "/secrets", Scope.SECRETS_READ),
        Entry("Usage", "/usage", Scope.USAGE_READ),
    ),
    (
        Entry("Keys", "/keys", Scope.PROJECT_ADMIN),
        Entry("Members", "/members", Scope.PROJECT_ADMIN),
        Entry("Projects", "/projects", Scope.PROJECT_ADMIN),
        Entry("Audit log", "/audit", Scope.AUDIT_READ),
        Entry("Nodes", "/nodes", Scope.ADMIN),
    ),
    (Entry("Account", "/account", None),),
)


def entries_for(identity: Identity) -> list[list[Entry]]:
    """Return the groups of pages that the identity may open."""
    groups = ([each for each in group if each.scope is None or identity.may(each.scope)] for group in GROUPS)
    return [group for group in groups if group]
