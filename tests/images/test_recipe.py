"""Recipes as data: what they say is checked, and errors name the file and the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar.errors import InvalidOption, UnknownImage
from belljar.images.recipe import find_recipe, read_recipe, recipes

WHOLE = """
name = "lua"
description = "Lua 5.4"
packages = ["lua5.4", "g++-12"]
env = { LUA_INIT = "" }

[[languages]]
name = "lua"
extensions = [".lua"]
interpreters = ["lua"]
entrypoints = ["main.lua"]
run = ["lua5.4", "{entrypoint}"]
"""


def test_a_whole_recipe_is_read() -> None:
    recipe = read_recipe(WHOLE, "lua.toml")
    assert (recipe.name, recipe.packages, recipe.languages[0].run) == (
        "lua",
        ("lua5.4", "g++-12"),
        ("lua5.4", "{entrypoint}"),
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "lua"\ndesc', "name = lua\ndesc", "is not TOML"),
        ('name = "lua"\ndesc', 'name = "Lua"\ndesc', "name: .*lower-case"),
        ('name = "lua"\ndesc', 'name = "../lua"\ndesc', "name: "),
        ('name = "lua"\ndesc', "desc", "name: Field required"),
        ('"lua5.4", "g++-12"', '"lua5.4; rm -rf /"', "packages: .* is no name of a Debian package"),
        ('"lua5.4", "g++-12"', '"-o=Dir=/"', "packages: "),
        ('"lua5.4", "g++-12"', '"a,b"', "packages: "),
        ('packages = ["lua5.4", "g++-12"]', 'packages = "lua5.4"', "packages: "),
        ('packages = ["lua5.4", "g++-12"]', "pakages = []", "pakages: "),
        ('run = ["lua5.4", "{entrypoint}"]', "", r"languages\.0\.run: Field required"),
        ("[[languages]]", "[other]", "languages"),
    ],
)
def test_a_mistake_names_the_file_and_the_field(old: str, new: str, words: str) -> None:
    assert old in WHOLE
    with pytest.raises(InvalidOption, match=f"lua.toml.*{words}"):
        read_recipe(WHOLE.replace(old, new), "lua.toml")


def test_a_users_recipe_hides_a_built_in_one(tmp_path: Path) -> None:
    assert {"python", "shell"} <= set(recipes(tmp_path))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/mine.toml").write_text(WHOLE.replace('name = "lua"\ndesc', 'name = "python"\ndesc'))
    assert find_recipe("python", tmp_path).description == "Lua 5.4"
    (tmp_path / "recipes/broken.toml").write_text("x")
    with pytest.raises(InvalidOption, match=r"recipes/broken\.toml"):
        recipes(tmp_path)


def test_a_recipe_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UnknownImage, match=r"no recipe for 'windows'; there are .*python, .*shell"):
        find_recipe("windows", tmp_path)
