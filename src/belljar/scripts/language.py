"""Detect a script's language: the declared one, else by the file's extension, else by its `#!` line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from belljar.model.errors import InvalidScript, UnknownLanguage
from belljar.model.image import Language

#: The bytes of a `#!` line that Linux reads (BINPRM_BUF_SIZE, execve(2)).
_SHEBANG_BYTES = 256
#: The bytes of a file that are examined; a NUL among them means that the file is not text, as in git.
HEAD_BYTES = 8000
#: The magic number of an executable, elf(5).
ELF = b"\x7fELF"
#: A version at an interpreter's end: `python3.11` is `python3` is `python`.
_VERSION = re.compile(r"(?:\.?[0-9]+)\Z")


def named_language(name: str, languages: Sequence[Language]) -> Language:
    """Return the language with this name or alias, in any case. Raises UnknownLanguage with the known ones."""
    folded = name.casefold()
    named = (language for language in languages if folded == language.name.casefold())
    aliased = (language for language in languages if folded in (alias.casefold() for alias in language.aliases))
    language = next(named, None) or next(aliased, None)
    if language is None:
        raise UnknownLanguage(f"no image runs the language {name[:40]!r}; known languages: {known_names(languages)}")
    return language


def detect_language(filename: str, head: bytes, languages: Sequence[Language]) -> Language:
    """Return the language of a file by its extension, its `#!` line or its magic number. Raises UnknownLanguage."""
    language = by_extension(filename, languages) or by_shebang(head, languages) or by_magic(head, languages)
    if language is None:
        shown = PurePosixPath(filename).name[-80:]
        raise UnknownLanguage(
            f"cannot detect the language of {shown!r} from its extension or a #! line; give `language`: "
            f"{known_names(languages)}"
        )
    return language


def by_extension(filename: str, languages: Sequence[Language]) -> Language | None:
    """Return the language with the longest extension of the name: in the case given, else in any case."""
    known = [(extension, language) for language in languages for extension in language.extensions]
    matching = [(extension, language) for extension, language in known if filename.endswith(extension)]
    if not matching:
        lower = filename.lower()
        matching = [(extension, language) for extension, language in known if lower.endswith(extension.lower())]
    return max(matching, key=lambda pair: len(pair[0]))[1] if matching else None


def by_magic(head: bytes, languages: Sequence[Language]) -> Language | None:
    """Return the language that executes the entrypoint itself, for a Linux executable (ELF)."""
    if not head.startswith(ELF):
        return None
    return next((language for language in languages if language.run == ("{entrypoint}",)), None)


def by_shebang(head: bytes, languages: Sequence[Language]) -> Language | None:
    """Return the language of the interpreter in the `#!` line, also through env(1) and with a version at its end."""
    interpreter = _interpreter(head)
    while interpreter:
        for language in languages:
            if interpreter in language.interpreters:
                return language
        shorter = _VERSION.sub("", interpreter)
        if shorter == interpreter:
            return None
        interpreter = shorter
    return None


def check_content(path: str, head: bytes, language: Language) -> None:
    """Raise InvalidScript for a binary file of an interpreted language; text may have any encoding."""
    interpreted = language.run[0] != "{entrypoint}"
    if interpreted and b"\0" in head:
        raise InvalidScript(
            f"{path[-80:]!r} contains NUL bytes, so it is binary or UTF-16, which {language.name} cannot run; "
            "upload its source as UTF-8, or give another `language`"
        )


def known_names(languages: Sequence[Language]) -> str:
    """Return the languages' names for a message."""
    return ", ".join(dict.fromkeys(language.name for language in languages)) or "none: build an image first"


def _interpreter(head: bytes) -> str:
    if not head.startswith(b"#!"):
        return ""
    words = head[2:_SHEBANG_BYTES].split(b"\n", 1)[0].decode("utf-8", "replace").split()
    if words and PurePosixPath(words[0]).name == "env":
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    return PurePosixPath(words[0]).name if words else ""
