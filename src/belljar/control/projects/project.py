"""The record of a project."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

#: The names of projects and keys.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
MAX_NAME_CHARACTERS = 64


class Project(BaseModel):
    """A project: the owner of scripts, jobs and keys. Its name is its id and does not change."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    created_at: datetime
    suspended_at: datetime | None = None
    """Since when its keys are refused and its jobs are not started."""
    removed_at: datetime | None = None
    """Since when its data is being removed."""

    def public(self) -> dict[str, Any]:
        """Return the fields for its administrators."""
        return self.model_dump(mode="json")
