"""An image that is another recipe's with more in it: Debian packages, wheels, npm packages. Said on a command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from belljar.images.recipe import Recipe, find_recipe
from belljar.model.errors import InvalidOption


@dataclass(frozen=True, kw_only=True, slots=True)
class Additions:
    """What comes on top of the recipe called `base`."""

    base: str
    apt: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()

    def recipe(self, name: str, data_dir: Path) -> Recipe:
        """The recipe of both. Raises UnknownImage, and InvalidOption for a name or a package that is none."""
        base = find_recipe(self.base, data_dir)
        tools = (("python3",) if self.pip else ()) + (("nodejs",) if self.npm else ())
        fields = base.model_dump() | {
            "name": name,
            "description": self._description(base),
            "packages": tuple(dict.fromkeys((*base.packages, *tools, *self.apt))),
            "pip": tuple(dict.fromkeys((*base.pip, *self.pip))),
            "npm": tuple(dict.fromkeys((*base.npm, *self.npm))),
        }
        try:
            return Recipe.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            option = str(first["loc"][0]) if first["loc"] else "image"
            raise InvalidOption(str(first["msg"]).removeprefix("Value error, "), option=option) from None

    def _description(self, base: Recipe) -> str:
        more = ", ".join((*self.apt, *self.pip, *self.npm))
        return f"{base.description}; with {more}" if more else base.description
