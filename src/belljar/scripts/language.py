"""Which language a script is in: what the caller says, else the file's ending, else its `#!` line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from belljar.model.errors import InvalidScript, UnknownLanguage
from belljar.model.image import Language

#: What Linux reads of a `#!` line (BINPRM_BUF_SIZE, execve(2)).
_SHEBANG_BYTES = 256
#: How much of a file is looked at; a NUL in it means that the file is no text, as git judges it.
HEAD_BYTES = 8000
#: How an executable begins, elf(5).
ELF = b"\x7fELF"
#: `python3.11` is `python3` is `python`.
_VERSION = re.compile(r"(?:\.?[0-9]+)\Z")


def named_language(name: str, languages: Sequence[Language]) -> Language:
    """The language of this name, in whatever case. Raises UnknownLanguage, naming those there are."""
    wanted = name.casefold()
    known = (language for language in languages if wanted == language.name.casefold())
    aliased = (language for language in languages if wanted in (alias.casefold() for alias in language.aliases))
    found = next(known, None) or next(aliased, None)
    if found is None:
        raise UnknownLanguage(f"no image runs the language {name[:40]!r}; known are {known_names(languages)}")
    return found


def detect_language(filename: str, head: bytes, languages: Sequence[Language]) -> Language:
    """The language that a file's ending or `#!` line tells. Raises UnknownLanguage, saying to give `language`."""
    found = by_extension(filename, languages) or by_shebang(head, languages) or by_magic(head, languages)
    if found is None:
        shown = PurePosixPath(filename).name[-80:]
        raise UnknownLanguage(
            f"the language of {shown!r} cannot be told from its ending or a #! line; give `language`: "
            f"{known_names(languages)}"
        )
    return found


def by_extension(filename: str, languages: Sequence[Language]) -> Language | None:
    """The language whose ending the name has, as it is written or else in lower case; of two, the longer ending's."""
    endings = [(ending, language) for language in languages for ending in language.extensions]
    fitting = [(ending, language) for ending, language in endings if filename.endswith(ending)]
    if not fitting:
        fitting = [(ending, language) for ending, language in endings if filename.lower().endswith(ending.lower())]
    return max(fitting, key=lambda pair: len(pair[0]))[1] if fitting else None


def by_magic(head: bytes, languages: Sequence[Language]) -> Language | None:
    """For an executable file of Linux (ELF), the language that executes the entrypoint itself."""
    if not head.startswith(ELF):
        return None
    return next((language for language in languages if language.run == ("{entrypoint}",)), None)


def by_shebang(head: bytes, languages: Sequence[Language]) -> Language | None:
    """The language whose interpreter the `#!` line names, also through env(1) and with a version at its end."""
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
    """Raises InvalidScript for a binary file where an interpreter wants text; any encoding of text will do."""
    interpreted = language.run[0] != "{entrypoint}"
    if interpreted and b"\0" in head:
        raise InvalidScript(
            f"{path[-80:]!r} holds NUL bytes, so it is a binary file or UTF-16, which {language.name} does not run; "
            "upload its source as UTF-8, or give another `language`"
        )


def known_names(languages: Sequence[Language]) -> str:
    return ", ".join(dict.fromkeys(language.name for language in languages)) or "none: build an image first"


def _interpreter(head: bytes) -> str:
    if not head.startswith(b"#!"):
        return ""
    words = head[2:_SHEBANG_BYTES].split(b"\n", 1)[0].decode("utf-8", "replace").split()
    if words and PurePosixPath(words[0]).name == "env":
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    return PurePosixPath(words[0]).name if words else ""
