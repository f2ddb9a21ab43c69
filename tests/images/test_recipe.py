"""Recipes are validated; errors name the file and the field."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import CapturingLogger

from belljar.images import recipe
from belljar.images.recipe import default_image, find_recipe, read_recipe, recipes
from belljar.model.errors import InvalidOption, UnknownImage

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


def test_a_complete_recipe_is_read() -> None:
    read = read_recipe(WHOLE, "lua.toml")
    assert (read.name, read.packages, read.languages[0].run) == (
        "lua",
        ("lua5.4", "g++-12"),
        ("lua5.4", "{entrypoint}"),
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "lua"\ndesc', "name = lua\ndesc", "is not TOML"),
        ('name = "lua"\ndesc', 'name = "Lua"\ndesc', "name: .*lower-case"),
        ('name = "lua"\ndesc', 'name = "../lua"\ndesc', "name: "),
        ('name = "lua"\ndesc', "desc", "name: Field required"),
        ('"lua5.4", "g++-12"', '"lua5.4; rm -rf /"', "packages: .* is not a valid name of a Debian package"),
        ('"lua5.4", "g++-12"', '"-o=Dir=/"', "packages: "),
        ('"lua5.4", "g++-12"', '"a,b"', "packages: "),
        ('packages = ["lua5.4", "g++-12"]', 'packages = "lua5.4"', "packages: "),
        ('packages = ["lua5.4", "g++-12"]', "pakages = []", "pakages: "),
        ('run = ["lua5.4", "{entrypoint}"]', "", r"languages\.0\.run: Field required"),
        ("[[languages]]", "[other]", "languages"),
    ],
)
def test_a_mistake_names_the_file_and_the_field(old: str, new: str, message: str) -> None:
    assert old in WHOLE
    with pytest.raises(InvalidOption, match=f"lua.toml.*{message}"):
        read_recipe(WHOLE.replace(old, new), "lua.toml")


def test_a_users_recipe_replaces_a_built_in_one(tmp_path: Path) -> None:
    assert {"python", "shell"} <= set(recipes(tmp_path))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/mine.toml").write_text(WHOLE.replace('name = "lua"\ndesc', 'name = "python"\ndesc'))
    assert find_recipe("python", tmp_path).description == "Lua 5.4"


@pytest.mark.parametrize("content", [b"x", b"\xff\xfe", b'name = "broken"\n'])
def test_an_invalid_recipe_leaves_the_others_usable(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = CapturingLogger()
    monkeypatch.setattr(recipe, "log", logged)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/mine.toml").write_text(WHOLE)
    (tmp_path / "recipes/broken.toml").write_bytes(content)
    assert {"python", find_recipe("lua", tmp_path).name} <= set(recipes(tmp_path))
    assert [(each.method_name, each.args, each.kwargs["path"]) for each in logged.calls] == [
        ("warning", ("recipe_skipped",), str(tmp_path / "recipes/broken.toml"))
    ]
    with pytest.raises(InvalidOption, match=r"recipes/broken\.toml"):
        find_recipe("broken", tmp_path)


def test_a_recipe_is_read_again_only_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "recipes/mine.toml"
    path.write_text(WHOLE)
    first = find_recipe("lua", tmp_path)
    assert find_recipe("lua", tmp_path) is first
    path.write_text(WHOLE.replace("Lua 5.4", "Lua, at last"))
    assert find_recipe("lua", tmp_path).description == "Lua, at last"
    path.unlink()
    with pytest.raises(UnknownImage):
        find_recipe("lua", tmp_path)


def test_each_language_of_a_recipe_has_one_image_that_runs_it_by_default(tmp_path: Path) -> None:
    built_in = recipes(tmp_path)
    for language in {language.name for each in built_in.values() for language in each.languages}:
        assert len([name for name, each in built_in.items() if language in each.default_for]) == 1, language
    # bash and Python are in the image that is built first; scripts of either find both.
    assert default_image("shell", tmp_path) == default_image("python", tmp_path) == "python"
    assert default_image("cobol", tmp_path) is None
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/mine.toml").write_text(WHOLE)
    assert default_image("lua", tmp_path) == "lua" and default_image("ruby", tmp_path) == "scripting"


def test_default_for_must_be_among_the_languages() -> None:
    with pytest.raises(InvalidOption, match="default_for has cobol"):
        read_recipe('default_for = ["cobol"]' + WHOLE, "mine.toml")


def test_an_unknown_recipe_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownImage, match=r"no recipe for 'windows'; known recipes: .*python, .*shell"):
        find_recipe("windows", tmp_path)
