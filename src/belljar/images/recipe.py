"""Recipes: TOML files that define the content of images, built-in ones beside this file, others in the data folder."""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import structlog
from pydantic import Field, ValidationError, field_validator, model_validator

from belljar.data_dir import DataDir
from belljar.model.errors import InvalidOption, UnknownImage
from belljar.model.image import Language
from belljar.model.value import Value

log = structlog.get_logger()

IMAGE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
#: A name, extras and versions; options, paths and addresses do not match.
_REQUIREMENT = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9,._-]+\])?\s*([=<>!~]=?=?[A-Za-z0-9.*,<>=!~ +-]*)?\Z"
)
_NPM_PACKAGE = re.compile(r"(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*(@[A-Za-z0-9^~<>=.*-]+)?\Z")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*\Z")


class RecipeFile(Value):
    """A file to add to the root filesystem."""

    path: str = Field(pattern=r"^(/[A-Za-z0-9._+-]+)+$")
    text: str
    executable: bool = False

    @field_validator("path")
    @classmethod
    def _path(cls, value: str) -> str:
        if {".", ".."} & set(value.split("/")):
            raise ValueError("a file's path must not contain . or ..")
        return value


class Recipe(Value):
    """One recipe file."""

    name: str
    description: str = ""
    #: Debian packages in addition to the essential ones.
    packages: tuple[str, ...] = ()
    #: Wheels from the package index of pip's settings, and packages from the registry of npm's.
    pip: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    #: Paths that are not unpacked from Debian packages, as dpkg's patterns.
    exclude: tuple[str, ...] = ()
    files: tuple[RecipeFile, ...] = ()
    #: Commands that run in the root filesystem at the end, such as those that make tools start faster.
    prepare: tuple[tuple[str, ...], ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    #: Memory of the smallest machine in which the languages' first programs run.
    min_memory_mb: int = Field(default=64, ge=64)
    languages: tuple[Language, ...] = Field(min_length=1)
    #: Languages whose default image this is, whatever else is built.
    default_for: tuple[str, ...] = ()

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not IMAGE_NAME.match(value):
            raise ValueError("an image's name must consist of lower-case letters, digits and . _ -, at most 63")
        return value

    @field_validator("pip")
    @classmethod
    def _pip(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for requirement in value:
            if not _REQUIREMENT.match(requirement):
                raise ValueError(f"{requirement!r} is not a valid requirement; give NAME or NAME==VERSION")
        return value

    @field_validator("npm")
    @classmethod
    def _npm(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for package in value:
            if not _NPM_PACKAGE.match(package):
                raise ValueError(f"{package!r} is not a valid npm package; give NAME or NAME@VERSION")
        return value

    @model_validator(mode="after")
    def _default_languages(self) -> Recipe:
        missing = set(self.default_for) - {language.name for language in self.languages}
        if missing:
            raise ValueError(f"default_for has {', '.join(sorted(missing))}, which is missing in languages")
        return self

    @field_validator("packages")
    @classmethod
    def _packages(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for package in value:
            if not _PACKAGE.match(package):
                raise ValueError(f"{package!r} is not a valid name of a Debian package")
        return value


def read_recipe(text: str, origin: str) -> Recipe:
    """Parse a recipe's TOML. Raises InvalidOption with `origin`, the file's name, and the error."""
    try:
        return Recipe.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InvalidOption(f"{origin} is not TOML: {error}", option="recipe") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidOption(f"{origin}: {where}: {first['msg']}", option="recipe") from None


def recipes(data_dir: Path) -> dict[str, Recipe]:
    """Return all recipes by their image's name; one in the data folder (`recipes/*.toml`) replaces a built-in one.

    An invalid file is skipped and logged once; the others stay usable.
    """
    return {**_builtin_recipes(), **_user_recipes(data_dir).valid}


def default_image(language: str, data_dir: Path) -> str | None:
    """Return the name of the language's default image, built or not; None when no recipe has the language.

    The user's recipes precede the built-in ones. Among several, one with the language in `default_for` precedes the one
    that is named like the language.
    """
    own = _user_recipes(data_dir).valid
    for group in (own, {name: recipe for name, recipe in _builtin_recipes().items() if name not in own}):
        declared = [name for name, recipe in group.items() if language in recipe.default_for]
        if declared:
            return declared[0]
        if language in group and _has_language(group[language], language):
            return language
    return next((name for name, recipe in recipes(data_dir).items() if _has_language(recipe, language)), None)


def _has_language(recipe: Recipe, language: str) -> bool:
    return any(each.name == language for each in recipe.languages)


def find_recipe(name: str, data_dir: Path) -> Recipe:
    """Return the recipe of an image. Raises UnknownImage with the known ones, InvalidOption for an invalid file."""
    for path, error in _user_recipes(data_dir).invalid.items():
        if path.stem == name:
            raise error
    known = recipes(data_dir)
    if name not in known:
        raise UnknownImage(f"there is no recipe for {name!r}; known recipes: {', '.join(known)}", option="image")
    return known[name]


@dataclass(frozen=True, slots=True)
class _UserRecipes:
    """The recipes in a data folder."""

    #: Name, mtime and size of each file.
    stamp: tuple[tuple[str, int, int], ...]
    valid: dict[str, Recipe]
    invalid: dict[Path, InvalidOption]


#: By folder; read again when a file in it changed, because every submission needs the languages.
_user_recipe_cache: dict[Path, _UserRecipes] = {}


def _user_recipes(data_dir: Path) -> _UserRecipes:
    folder = DataDir(data_dir).recipes
    paths = sorted(folder.glob("*.toml"))
    stamp = tuple(_stamp(path) for path in paths)
    cached = _user_recipe_cache.get(folder)
    if cached is None or cached.stamp != stamp:
        cached = _user_recipe_cache[folder] = _read_folder(paths, stamp)
    return cached


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:
        return path.name, 0, 0
    return path.name, status.st_mtime_ns, status.st_size


def _read_folder(paths: list[Path], stamp: tuple[tuple[str, int, int], ...]) -> _UserRecipes:
    valid: dict[str, Recipe] = {}
    invalid: dict[Path, InvalidOption] = {}
    for path in paths:
        try:
            recipe = read_recipe(path.read_text(encoding="utf-8-sig"), str(path))
        except InvalidOption as error:
            invalid[path] = error
        except (OSError, UnicodeDecodeError) as error:
            invalid[path] = InvalidOption(f"{path} cannot be read: {error}", option="recipe")
        else:
            valid[recipe.name] = recipe
    for path, invalid_option in invalid.items():
        log.warning("recipe_skipped", path=str(path), error=invalid_option.message)
    return _UserRecipes(stamp, valid, invalid)


@functools.cache
def _builtin_recipes() -> dict[str, Recipe]:
    """Return the built-in recipes; the files are read once."""
    builtin: dict[str, Recipe] = {}
    for entry in sorted((files("belljar.images") / "recipes").iterdir(), key=lambda each: each.name):
        if entry.name.endswith(".toml"):
            recipe = read_recipe(entry.read_text(), entry.name)
            builtin[recipe.name] = recipe
    return builtin
