"""Recipes: what goes into an image, as data. Built-in ones are beside this file, a user's in the data folder."""

from __future__ import annotations

import functools
import re
import tomllib
from importlib.resources import files
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from belljar.errors import InvalidOption, UnknownImage
from belljar.images.manifest import Language, Value

IMAGE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
#: A name, extras and versions: no option, no path and no address can be written so.
_REQUIREMENT = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9,._-]+\])?\s*([=<>!~]=?=?[A-Za-z0-9.*,<>=!~ +-]*)?\Z"
)
_NPM_PACKAGE = re.compile(r"(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*(@[A-Za-z0-9^~<>=.*-]+)?\Z")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*\Z")


class RecipeFile(Value):
    """A file that is laid into the root filesystem."""

    path: str = Field(pattern=r"^(/[A-Za-z0-9._+-]+)+$")
    text: str
    executable: bool = False

    @field_validator("path")
    @classmethod
    def _path(cls, value: str) -> str:
        if {".", ".."} & set(value.split("/")):
            raise ValueError("a file's path has no . and .. in it")
        return value


class Recipe(Value):
    """One recipe file."""

    name: str
    description: str = ""
    #: Debian packages on top of the essential ones.
    packages: tuple[str, ...] = ()
    #: Wheels from the package index that pip is set to use, and packages from npm's registry.
    pip: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    #: Paths that Debian packages are unpacked without; dpkg's patterns.
    exclude: tuple[str, ...] = ()
    files: tuple[RecipeFile, ...] = ()
    #: Commands that are run in the root filesystem at the end: what makes the tools start faster.
    prepare: tuple[tuple[str, ...], ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    languages: tuple[Language, ...] = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not IMAGE_NAME.match(value):
            raise ValueError("an image's name has lower-case letters, digits and . _ -, at most 63")
        return value

    @field_validator("pip")
    @classmethod
    def _pip(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for requirement in value:
            if not _REQUIREMENT.match(requirement):
                raise ValueError(f"{requirement!r} is no requirement; give NAME or NAME==VERSION")
        return value

    @field_validator("npm")
    @classmethod
    def _npm(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for package in value:
            if not _NPM_PACKAGE.match(package):
                raise ValueError(f"{package!r} is no npm package; give NAME or NAME@VERSION")
        return value

    @field_validator("packages")
    @classmethod
    def _packages(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for package in value:
            if not _PACKAGE.match(package):
                raise ValueError(f"{package!r} is no name of a Debian package")
        return value


def read_recipe(text: str, origin: str) -> Recipe:
    """A recipe from TOML. Raises InvalidOption, naming the file and what is wrong in it."""
    try:
        return Recipe.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InvalidOption(f"{origin} is not TOML: {error}", option="recipe") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidOption(f"{origin}: {where}: {first['msg']}", option="recipe") from None


def recipes(data_dir: Path) -> dict[str, Recipe]:
    """Every recipe by its image's name; a user's (`recipes/*.toml` in the data folder) hides a built-in one."""
    found = dict(_builtin_recipes())
    for path in sorted((data_dir / "recipes").glob("*.toml")):
        recipe = read_recipe(path.read_text(), str(path))
        found[recipe.name] = recipe
    return found


@functools.cache
def _builtin_recipes() -> dict[str, Recipe]:
    """Read once: every submission asks which languages there are."""
    found: dict[str, Recipe] = {}
    for entry in sorted((files("belljar.images") / "recipes").iterdir(), key=lambda each: each.name):
        if entry.name.endswith(".toml"):
            recipe = read_recipe(entry.read_text(), entry.name)
            found[recipe.name] = recipe
    return found


def find_recipe(name: str, data_dir: Path) -> Recipe:
    """The recipe of an image. Raises UnknownImage, naming those that there are."""
    known = recipes(data_dir)
    if name not in known:
        raise UnknownImage(f"there is no recipe for {name!r}; there are {', '.join(known)}", option="image")
    return known[name]
