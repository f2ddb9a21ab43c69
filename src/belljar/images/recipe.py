"""Recipes: what goes into an image, as data. Built-in ones are beside this file, a user's in the data folder."""

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
from belljar.model.image import Language, Value

log = structlog.get_logger()

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
    #: The least memory of a machine in which its languages' first programs run.
    min_memory_mb: int = Field(default=64, ge=64)
    languages: tuple[Language, ...] = Field(min_length=1)
    #: Languages whose scripts run in this image unless another is asked for, whatever else is built.
    default_for: tuple[str, ...] = ()

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

    @model_validator(mode="after")
    def _runs_what_it_is_for(self) -> Recipe:
        missing = set(self.default_for) - {language.name for language in self.languages}
        if missing:
            raise ValueError(f"default_for names {', '.join(sorted(missing))}, which languages has not")
        return self

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
    """Every recipe by its image's name; a user's (`recipes/*.toml` in the data folder) hides a built-in one.

    A file that is no recipe is left out, and logged once: the others stay usable.
    """
    return {**_builtin_recipes(), **_user_recipes(data_dir).sound}


def default_image(language: str, data_dir: Path) -> str | None:
    """Name of the image that scripts of a language run in by default: a fixed one, built or not; None: no recipe's.

    A user's recipe comes before the built-in ones; of two, the one that says so, else the one of the language's name.
    """
    own = _user_recipes(data_dir).sound
    for known in (own, {name: recipe for name, recipe in _builtin_recipes().items() if name not in own}):
        said = [name for name, recipe in known.items() if language in recipe.default_for]
        runs = [name for name, recipe in known.items() if language in (each.name for each in recipe.languages)]
        if said:
            return said[0]
        if language in runs:
            return language
    everything = recipes(data_dir).items()
    return next((name for name, recipe in everything if language in (each.name for each in recipe.languages)), None)


def find_recipe(name: str, data_dir: Path) -> Recipe:
    """The recipe of an image. Raises UnknownImage, naming those that there are; InvalidOption for a broken file."""
    for path, error in _user_recipes(data_dir).broken.items():
        if path.stem == name:
            raise error
    known = recipes(data_dir)
    if name not in known:
        raise UnknownImage(f"there is no recipe for {name!r}; there are {', '.join(known)}", option="image")
    return known[name]


@dataclass(frozen=True, slots=True)
class _UserRecipes:
    """What is in a data folder's `recipes`."""

    #: Which files there were, and when they changed.
    stamp: tuple[tuple[str, int, int], ...]
    sound: dict[str, Recipe]
    broken: dict[Path, InvalidOption]


#: By the folder; read again when a file in it has changed, since every submission asks which languages there are.
_read: dict[Path, _UserRecipes] = {}


def _user_recipes(data_dir: Path) -> _UserRecipes:
    folder = DataDir(data_dir).recipes
    paths = sorted(folder.glob("*.toml"))
    stamp = tuple(_stamp(path) for path in paths)
    known = _read.get(folder)
    if known is None or known.stamp != stamp:
        known = _read[folder] = _read_folder(paths, stamp)
    return known


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        about = path.stat()
    except OSError:
        return path.name, 0, 0
    return path.name, about.st_mtime_ns, about.st_size


def _read_folder(paths: list[Path], stamp: tuple[tuple[str, int, int], ...]) -> _UserRecipes:
    sound: dict[str, Recipe] = {}
    broken: dict[Path, InvalidOption] = {}
    for path in paths:
        try:
            recipe = read_recipe(path.read_text(encoding="utf-8-sig"), str(path))
        except InvalidOption as error:
            broken[path] = error
        except (OSError, UnicodeDecodeError) as error:
            broken[path] = InvalidOption(f"{path} cannot be read: {error}", option="recipe")
        else:
            sound[recipe.name] = recipe
    for path, wrong in broken.items():
        log.warning("recipe_left_out", path=str(path), error=wrong.message)
    return _UserRecipes(stamp, sound, broken)


@functools.cache
def _builtin_recipes() -> dict[str, Recipe]:
    """Read once."""
    found: dict[str, Recipe] = {}
    for entry in sorted((files("belljar.images") / "recipes").iterdir(), key=lambda each: each.name):
        if entry.name.endswith(".toml"):
            recipe = read_recipe(entry.read_text(), entry.name)
            found[recipe.name] = recipe
    return found
