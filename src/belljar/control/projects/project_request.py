"""What a caller sends to create or change a project."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from belljar.control.projects.project import MAX_NAME_CHARACTERS, NAME


class NewProject(BaseModel):
    """A project to create."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARACTERS, pattern=NAME)
    """Its name, which is its id and does not change."""


class ProjectChange(BaseModel):
    """A change of a project."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    suspended: bool
    """Whether its keys are refused and its jobs are not started."""
    cancel_running: bool = False
    """With `suspended`: whether to cancel its running jobs."""
