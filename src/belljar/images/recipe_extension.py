"""Extend a recipe by Debian packages, wheels and npm packages, as given on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from belljar.images.recipe import Recipe, find_recipe
from belljar.model.errors import InvalidOption


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeExtension:
    """The packages to add to the recipe called `base`."""

    base: str
    apt: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()

    def recipe(self, name: str, data_dir: Path) -> Recipe:
        """Return the extended recipe, called `name`. Raises UnknownImage, InvalidOption for a name or a package."""
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
        added = ", ".join((*self.apt, *self.pip, *self.npm))
        return f"{base.description}; with {added}" if added else base.description
