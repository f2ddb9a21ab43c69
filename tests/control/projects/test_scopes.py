"""The table of scopes and roles in the documentation is that of the code."""

from __future__ import annotations

import re

from belljar.control.projects.scopes import ROLE_SCOPES, Role, Scope
from support.paths import ROOT


def test_the_documented_table_of_scopes_and_roles_is_that_of_the_code() -> None:
    text = (ROOT / "docs/projects.md").read_text()
    rows = re.findall(r"^\| `([a-z:]+)` \| .* \| (yes)? ?\| (yes)? ?\| (yes)? ?\|$", text, re.M)
    documented = {name: {role for role, mark in zip(Role, marks, strict=True) if mark} for name, *marks in rows}
    assert documented == {scope.value: {role for role in Role if scope in ROLE_SCOPES[role]} for scope in Scope}
