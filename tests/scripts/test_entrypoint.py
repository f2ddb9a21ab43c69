"""Choosing the file that is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar.model.errors import InvalidScript, UnknownLanguage
from belljar.model.image import Language
from belljar.scripts.entrypoint import choose_entrypoint, file_name
from belljar.scripts.language import named_language
from belljar.scripts.limits import ExtractionBudget, UploadLimits
from belljar.scripts.tree import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    (tmp_path / "tree").mkdir()
    return Tree(tmp_path / "tree", ExtractionBudget(UploadLimits()))


def add(tree: Tree, *names: str, content: bytes = b"text") -> Tree:
    for name in names:
        tree.add_file(name, [content])
    return tree


def chosen(
    tree: Tree, languages: list[Language], *, language: str | None = None, entrypoint: str | None = None
) -> tuple[str, str]:
    chosen, path = choose_entrypoint(tree, languages, language=language, entrypoint=entrypoint)
    return chosen.name, path


@pytest.mark.parametrize(
    ("names", "language", "entrypoint", "expected"),
    [
        (["main.py", "util.py"], None, None, ("python", "main.py")),
        (["__main__.py", "main.py"], None, None, ("python", "main.py")),
        (["run.sh", "data.txt"], None, None, ("shell", "run.sh")),
        (["main.py", "run.sh"], "shell", None, ("shell", "run.sh")),
        (["main.py", "run.sh"], None, "run.sh", ("shell", "run.sh")),
        (["main.py", "tool.py"], None, "./tool.py", ("python", "tool.py")),
        (["src/tool.py", "README"], None, None, ("python", "src/tool.py")),
        (["project/main.py", "project/util.py"], None, None, ("python", "main.py")),
        (["project/a.py", "project/b.py"], None, "project/a.py", ("python", "project/a.py")),
        (["project/a.py", "project/b.py"], None, "a.py", ("python", "a.py")),
        (["tool.py", "._tool.py"], None, None, ("python", "tool.py")),
        (["tool"], "shell", None, ("shell", "tool")),
        (["a.txt", "tool"], "shell", "tool", ("shell", "tool")),
    ],
)
def test_the_entrypoint_is_found(
    tree: Tree,
    languages: list[Language],
    names: list[str],
    language: str | None,
    entrypoint: str | None,
    expected: tuple[str, str],
) -> None:
    assert chosen(add(tree, *names), languages, language=language, entrypoint=entrypoint) == expected


@pytest.mark.parametrize(
    ("names", "language", "entrypoint", "message"),
    [
        (
            ["a.py", "b.py"],
            None,
            None,
            r"2 files could be it: a\.py, b\.py; give `entrypoint`, or put main.py or __main__.py or main.sh or",
        ),
        (
            ["a.txt", "b.txt"],
            "python",
            None,
            r"no file has an extension of python; give `entrypoint`, or put main.py or __main__.py at the top$",
        ),
        (["data"], None, None, "no entrypoint"),
        (["main.py", "run.sh"], None, None, r"main.py \(python\), run.sh \(shell\)"),
        (["main.py"], None, "missing.py", "'missing.py' is not a file of the script; its files: main.py"),
        (["main.py"], None, "../main.py", "contains .."),
        (["main.py"], None, "/work/main.py", "absolute"),
    ],
)
def test_the_message_lists_what_was_tried(
    tree: Tree, languages: list[Language], names: list[str], language: str | None, entrypoint: str | None, message: str
) -> None:
    with pytest.raises(InvalidScript, match=message):
        chosen(add(tree, *names), languages, language=language, entrypoint=entrypoint)


def test_an_entrypoint_without_a_language_needs_one_declared(tree: Tree, languages: list[Language]) -> None:
    with pytest.raises(UnknownLanguage, match="give `language`: python, shell, binary"):
        chosen(add(tree, "tool", "main.py"), languages, entrypoint="tool")


def test_a_shebang_decides_the_language_of_the_only_file(tree: Tree, languages: list[Language]) -> None:
    assert chosen(add(tree, "tool", content=b"#!/bin/sh\n"), languages) == ("shell", "tool")


def test_a_link_may_be_the_entrypoint(tree: Tree, languages: list[Language]) -> None:
    add(tree, "src/app.py", "src/more.py")
    tree.add_link("main.py", "src/app.py")
    assert chosen(tree, languages) == ("python", "main.py")


def test_a_binary_entrypoint_is_refused(tree: Tree, languages: list[Language]) -> None:
    with pytest.raises(InvalidScript, match="NUL bytes"):
        chosen(add(tree, "main.py", content=b"\0"), languages)


@pytest.mark.parametrize(
    ("filename", "language", "name"),
    [
        ("prog.c", "c", "prog.c"),
        ("upload-4711", "c", "upload-4711.c"),
        ("upload-4711", "C++", "upload-4711.cpp"),
        ("MAIN.CPP", "cpp", "MAIN.cpp"),
        ("a.C", "cpp", "a.C"),
        ("A.C", "c", "A.c"),
        ("notes.txt", "c", "notes.txt.c"),
        (".c", "c", "main.c"),
        ("", "c", "main.c"),
    ],
)
def test_a_compilers_file_has_an_extension_that_it_knows(
    compiled: list[Language], filename: str, language: str, name: str
) -> None:
    assert file_name(filename, named_language(language, compiled)) == name


def test_an_interpreters_file_keeps_its_name(languages: list[Language]) -> None:
    assert file_name("upload-4711", languages[0]) == "upload-4711"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["app/src/com/acme/main.c", "app/src/com/acme/other.c"], ("c", "src/com/acme/main.c")),
        (["src/main.cpp", "src/u.cpp", "include/u.h"], ("cpp", "src/main.cpp")),
        (["core/main.c", "core/a.c", "tests/main.c"], ("c", "core/main.c")),
    ],
)
def test_an_entrypoint_name_is_found_in_any_folder(
    tree: Tree, compiled: list[Language], names: list[str], expected: tuple[str, str]
) -> None:
    assert chosen(add(tree, *names), compiled) == expected


def test_the_user_chooses_among_several_entrypoint_names(tree: Tree, compiled: list[Language]) -> None:
    add(tree, "one/main.c", "two/main.c", "two/more.c")
    with pytest.raises(InvalidScript, match=r"2 files could be it: one/main\.c, two/main\.c; give `entrypoint`"):
        chosen(tree, compiled)
