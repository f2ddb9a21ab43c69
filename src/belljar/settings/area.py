"""What the settings of every area have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel as _Base
else:
    # pydantic collects the fields for `Settings` alone. Areas that are models themselves would double the time that
    # this package takes to load, at every start of a command, and nothing makes an instance of one.
    _Base = object


class Area(_Base):
    """The settings of one area; `Settings` is all areas together.

    Annotate a function with an area if it needs no other settings. Modules of areas have no
    `from __future__ import annotations`: pydantic would have to compile each annotation from its text.
    """
