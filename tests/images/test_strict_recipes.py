"""Recipes are validated strictly, a user's like the built-in ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar.images.recipe import find_recipe, read_recipe, recipes
from belljar.images.recipe_extension import RecipeExtension
from belljar.model.errors import InvalidOption, UnknownImage

NOWHERE = Path("/nonexistent")
BUILTIN = recipes(NOWHERE)
OWN = """
name = "own"
packages = ["python3"]
[[languages]]
name = "python"
run = ["python3", "-X", "dev", "{entrypoint}"]
"""


def test_every_language_has_all_fields_for_users() -> None:
    for recipe in BUILTIN.values():
        for language in recipe.languages:
            assert language.run
            if language.name != "binary":
                assert language.extensions and language.entrypoints and language.version and language.hello


def test_a_language_is_the_same_in_every_recipe_that_has_it() -> None:
    known: dict[str, object] = {}
    for recipe in BUILTIN.values():
        for language in recipe.languages:
            assert known.setdefault(language.name, language) == language


def test_no_two_languages_share_an_extension_an_interpreter_or_a_name() -> None:
    languages = {language.name: language for recipe in BUILTIN.values() for language in recipe.languages}.values()
    for field in ("extensions", "interpreters", "aliases"):
        claimed = [claim for language in languages for claim in getattr(language, field)]
        assert len(claimed) == len(set(claimed))
    names = [language.name for language in languages]
    assert not set(names) & {alias for language in languages for alias in language.aliases}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("name = 'x'\ncolour = 'red'\n[[languages]]\nname = 'a'\nrun = ['a']", "colour"),
        ("name = 'x'\n[[languages]]\nname = 'a'\nrun = ['a']\nrunn = ['b']", "runn"),
        ("name = 'Not A Name'", "name"),
        ("name = 'x'\npackages = ['--option']", "packages"),
        ("name = 'x'\npip = ['--index-url=http://x']", "pip"),
        ("name = 'x'\npip = ['x @ file:///etc']", "pip"),
        ("name = 'x'\nnpm = ['../evil']", "npm"),
        ("name = 'x'\n[[files]]\npath = '/a/../../etc/x'\ntext = ''", "files"),
        ("name = 'x'\n[[files]]\npath = '/a b$(c)'\ntext = ''", "files"),
        ("name = 'x'", "languages"),
        ("name = ", "TOML"),
    ],
)
def test_an_invalid_recipe_is_reported_with_the_place(change: str, named: str) -> None:
    with pytest.raises(InvalidOption, match=named) as caught:
        read_recipe(change, "mine.toml")
    assert "mine.toml" in caught.value.message


def test_a_users_recipe_is_found_and_replaces_a_builtin_one(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "own.toml").write_text(OWN)
    assert find_recipe("own", tmp_path).languages[0].run[1] == "-X"
    (tmp_path / "recipes" / "python.toml").write_text(OWN.replace('"own"', '"python"'))
    assert find_recipe("python", tmp_path).languages[0].run[1] == "-X"


def test_an_extension_adds_packages_to_a_recipe() -> None:
    recipe = RecipeExtension(base="python", apt=("jq", "procps"), pip=("numpy==2.1.*", "requests[socks]>=2,<3")).recipe(
        "science", NOWHERE
    )
    assert recipe.name == "science" and recipe.languages == BUILTIN["python"].languages
    assert recipe.packages == (*BUILTIN["python"].packages, "jq") and "procps" in BUILTIN["python"].packages
    assert recipe.pip == ("numpy==2.1.*", "requests[socks]>=2,<3")
    assert "numpy" in recipe.description


def test_an_extension_adds_the_tools_that_its_packages_need() -> None:
    assert "nodejs" in RecipeExtension(base="shell", npm=("left-pad",)).recipe("x", NOWHERE).packages
    assert "python3" in RecipeExtension(base="shell", pip=("six",)).recipe("x", NOWHERE).packages


def test_invalid_packages_of_an_extension_are_refused() -> None:
    with pytest.raises(InvalidOption, match="not a valid name of a Debian package"):
        RecipeExtension(base="python", apt=("-o", "x")).recipe("x", NOWHERE)
    with pytest.raises(InvalidOption, match="not a valid requirement"):
        RecipeExtension(base="python", pip=("-r/etc/passwd",)).recipe("x", NOWHERE)
    with pytest.raises(UnknownImage):
        RecipeExtension(base="nothing").recipe("x", NOWHERE)
