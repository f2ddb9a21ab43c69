"""Languages from names and `#!` lines; entrypoints are in test_entrypoint.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar.model.errors import InvalidScript, UnknownLanguage
from belljar.model.image import Language
from belljar.scripts.entrypoint import file_name
from belljar.scripts.language import by_extension, by_shebang, check_content, detect_language, named_language

PYTHON = Language(
    name="python", extensions=(".py",), interpreters=("python3", "python"), run=("python3", "{entrypoint}")
)
LUA = Language(name="lua", extensions=(".lua", ".x.py"), interpreters=("lua",), run=("lua", "{entrypoint}"))
NATIVE = Language(name="native", run=("{entrypoint}",))
LANGUAGES = [PYTHON, LUA, NATIVE]


@pytest.mark.parametrize(
    ("name", "expected"), [("a.py", PYTHON), ("A.PY", PYTHON), ("a.x.py", LUA), ("py", None), ("", None)]
)
def test_the_extension_decides_the_language_and_the_longer_one_wins(name: str, expected: Language | None) -> None:
    assert by_extension(name, LANGUAGES) is expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"#!/usr/bin/python3\n", PYTHON),
        (b"#! /usr/bin/python3.11 -u\r\n", PYTHON),
        (b"#!/usr/bin/env python\n", PYTHON),
        (b"#!/usr/bin/env -S PYTHONUTF8=1 python3 -u\n", PYTHON),
        (b"#!/usr/bin/env lua5.4", LUA),
        (b"#!/usr/bin/perl\npython3", None),
        (b"#!", None),
        (b"#!\n/usr/bin/python3", None),
        (b"#!/usr/bin/env\n", None),
        (b" #!/usr/bin/python3", None),
        (b"#!/usr/bin/" + b"x" * 300 + b"/python3\n", None),
        (b"#!\xff\xfe", None),
    ],
)
def test_the_shebang_decides_the_language(line: bytes, expected: Language | None) -> None:
    assert by_shebang(line, LANGUAGES) is expected


@given(head=st.binary(max_size=400), prefix=st.sampled_from([b"", b"#!", b"#!/usr/bin/env ", b"#!/bin/python"]))
def test_any_bytes_have_a_language_or_a_clear_refusal(head: bytes, prefix: bytes) -> None:
    try:
        assert detect_language("file", prefix + head, LANGUAGES) in LANGUAGES
    except UnknownLanguage as error:
        assert "give `language`: python, lua, native" in error.message


@given(name=st.text(max_size=40), interpreter=st.sampled_from(["python3", "python", "python3.12"]))
def test_the_extension_comes_before_the_shebang(name: str, interpreter: str) -> None:
    head = f"#!/usr/bin/env {interpreter}\n".encode()
    assert detect_language(name + ".lua", head, LANGUAGES) is LUA
    assert detect_language(name + "_", head, LANGUAGES) is PYTHON


def test_a_given_language_must_be_known() -> None:
    assert named_language("lua", LANGUAGES) is LUA
    with pytest.raises(UnknownLanguage, match="'cobol'; known languages: python, lua, native"):
        named_language("cobol", LANGUAGES)


def test_text_may_have_any_encoding_and_only_executables_may_be_binary() -> None:
    latin = "# -*- coding: latin-1 -*-\nprint('é')".encode("latin-1")
    check_content("a.py", latin, PYTHON)
    check_content("program", b"\x7fELF\0", NATIVE)
    for binary in (b"\x7fELF\0", "print(1)".encode("utf-16")):
        with pytest.raises(InvalidScript, match="binary or UTF-16"):
            check_content("a.py", binary, PYTHON)


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("hello.py", "hello.py"),
        ("C:\\me\\hello.py", "hello.py"),
        ("../../etc/hello.py", "hello.py"),
        ("my script (1).py", "my_script__1_.py"),
        ("", "main.py"),
        ("-", "main.py"),
        ("-c.py", "main.py"),
        (".py", "main.py"),
        ("..", "main.py"),
        ("скрипт.py", "main.py"),
        ("a" * 98 + ".py", "main.py"),
        ("a\nb\0.py", "a_b_.py"),
    ],
)
def test_a_file_keeps_a_safe_base_name(given_name: str, name: str) -> None:
    assert file_name(given_name, PYTHON) == name


@given(name=st.text())
def test_every_name_becomes_a_safe_one(name: str) -> None:
    tame = file_name(name, PYTHON)
    assert 0 < len(tame) <= 100
    assert tame[0].isalnum() or tame[0] == "_"
    assert tame.isascii()
    assert not set("/\\\0 ") & set(tame)
