"""The globs of artifacts, compared with a plain definition, and in bounded time."""

from __future__ import annotations

import subprocess
from fnmatch import fnmatchcase
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from support.conversation import compile_with_agent

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def globs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("globs") / "globs"
    compile_with_agent(binary, Path(__file__).with_name("globs.c"))
    return binary


def answers(globs: Path, pairs: list[tuple[str, str]]) -> list[tuple[bool, bool]]:
    """For each glob and path: whether it matches it, and whether it may match something below it."""
    text = "".join(f"{glob}\t{path}\n" for glob, path in pairs)
    result = subprocess.run([globs], input=text, capture_output=True, text=True, timeout=60, check=True)
    return [(line[0] == "1", line[2] == "1") for line in result.stdout.splitlines()]


@cache
def matches(glob: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """By the definition: each name of the glob takes one of the path's, `**` any number; the path may go on."""
    if not glob:
        return True
    if glob[0] == "**":
        if len(glob) == 1:
            return bool(path)
        return any(matches(glob[1:], path[at:]) for at in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], glob[0]) and matches(glob[1:], path[1:])


def test_they_match_what_their_definition_says(globs: Path) -> None:
    names = ["**", "*", "a", "b", "a*"]
    all_globs = ["/".join(parts) for count in range(1, 5) for parts in product(names, repeat=count)]
    all_paths = ["/".join(parts) for count in range(1, 5) for parts in product(["a", "b", "ab"], repeat=count)]
    pairs = list(product(all_globs, all_paths))
    expected = [matches(tuple(glob.split("/")), tuple(path.split("/"))) for glob, path in pairs]
    found = [match for match, _ in answers(globs, pairs)]
    assert [pair for pair, *both in zip(pairs, expected, found, strict=True) if both[0] != both[1]] == []


def test_a_folder_is_entered_if_and_only_if_something_below_it_could_match(globs: Path) -> None:
    names, below = ["**", "*", "a", "b"], ["a", "b", "a/a", "a/b", "b/a", "b/b", "a/a/a", "b/b/b", "a/b/a", "b/a/b"]
    all_globs = ["/".join(parts) for count in range(1, 4) for parts in product(names, repeat=count)]
    folders = ["/".join(parts) for count in range(1, 4) for parts in product(["a", "b"], repeat=count)]
    pairs = list(product(all_globs, folders))
    expected = [
        any(matches(tuple(glob.split("/")), (*folder.split("/"), *rest.split("/"))) for rest in below)
        for glob, folder in pairs
    ]
    found = [may for _, may in answers(globs, pairs)]
    assert [pair for pair, *both in zip(pairs, expected, found, strict=True) if both[0] != both[1]] == []


@pytest.mark.parametrize(
    ("glob", "path", "matched"),
    [
        ("out/", "out/a", True),
        ("./out//*.txt", "out/a.txt", True),
        (".", "a", True),
        ("**/**/**", "a", True),
        ("[ab]c?", "acd", True),
        ("[!a]*", "bc", True),
        ("*.txt", "out/a.txt", False),
        ("out", "outer", False),
        ("a/**", "a", False),
    ],
)
def test_their_forms(globs: Path, glob: str, path: str, matched: bool) -> None:
    assert answers(globs, [(glob, path)])[0][0] is matched


def test_many_stars_and_deep_paths_take_bounded_time(globs: Path) -> None:
    """Each way to spread 40 stars over 47 folders would have been tried before: the process would not end."""
    path = "/".join(["d"] * 47)
    hard = ["**/" * 40 + "zzz", "/".join(["**", "d"] * 20) + "/zzz", "**/d/d/d/d/d/d/e/" * 6 + "x", "*" * 200 + "z"]
    assert [match for match, _ in answers(globs, [(glob, path) for glob in hard] * 100)] == [False] * 400
