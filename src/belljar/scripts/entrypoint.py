"""Which file of a script is run, and what a single file is called in the machine."""

from __future__ import annotations

import re
from collections.abc import Sequence

from belljar.model.errors import InvalidScript
from belljar.model.image import Language
from belljar.scripts.language import (
    HEAD_BYTES,
    by_extension,
    by_shebang,
    check_content,
    detect_language,
    known_names,
    named_language,
)
from belljar.scripts.tree import Tree, member_path

_MAX_NAME = 100
#: Folders whose programs are of a project's development.
_TESTS = frozenset({"test", "tests", "examples", "vendor", "node_modules", "third_party"})
_OTHER = re.compile(r"[^A-Za-z0-9._-]")


def file_name(filename: str, language: Language) -> str:
    """A name for a one-file script: the base name with what is not [A-Za-z0-9._-] as `_`, else the language's first
    usual name, else `main` and the ending. A compiler's file gets an ending that it knows.

    The name becomes a path in the machine and may be an argument there, so it begins with a letter, digit or `_`.
    """
    name = _OTHER.sub("_", base_name(filename))
    if language.compile and language.extensions and not name.endswith(language.extensions):
        stem, dot, ending = name.rpartition(".")
        known = dot + ending.lower() in language.extensions
        name = f"{stem}.{ending.lower()}" if known else name + language.extensions[0]
    if len(name) <= _MAX_NAME and name[:1] not in ("", ".", "-") and re.search(r"[A-Za-z0-9]", name.split(".")[0]):
        return name
    usual = next((name for name in language.entrypoints if name.endswith(language.extensions)), None)
    return usual or "main" + (language.extensions[0] if language.extensions else "")


def base_name(filename: str) -> str:
    """What follows the last slash of either kind."""
    return re.split(r"[/\\]", filename)[-1]


def choose_entrypoint(
    tree: Tree, languages: Sequence[Language], *, language: str | None, entrypoint: str | None
) -> tuple[Language, str]:
    """The language and the entrypoint of several files; a folder that holds everything else becomes the root.

    The entrypoint is the given one; else the first of the language's usual names at the top; else the one file with a
    known ending; else the one file with a usual name in any folder; else the one file. Raises InvalidScript, saying
    what was looked for, and UnknownLanguage.
    """
    wanted = named_language(language, languages) if language is not None else None
    if entrypoint is not None:
        path = _given(tree, entrypoint)
        found = wanted or detect_language(path, tree.head(path, HEAD_BYTES), languages)
    else:
        tree.strip_folder()
        found, path = _find(tree, wanted, languages)
    check_content(path, tree.head(path, HEAD_BYTES), found)
    return found, path


def _given(tree: Tree, entrypoint: str) -> str:
    path = member_path(entrypoint, max_depth=1024)
    if tree.is_file(path) or (tree.strip_folder() and tree.is_file(path)):
        return path
    there = sorted({*tree.files, *tree.links})
    shown = ", ".join(there[:5]) + (", …" if len(there) > 5 else "")
    raise InvalidScript(f"there is no file {path[:80]!r} to be the entrypoint; the script holds {shown}")


def _find(tree: Tree, wanted: Language | None, languages: Sequence[Language]) -> tuple[Language, str]:
    candidates = languages if wanted is None else [wanted]
    usual = _usual_names(tree, candidates)
    if len(usual) > 1:
        there = ", ".join(f"{path} ({language.name})" for path, language in usual.items())
        raise InvalidScript(f"the script could begin at {there}; say which with `entrypoint` or `language`")
    for path, language in usual.items():
        return language, path
    shown = [path for path in tree.files if not path.rpartition("/")[2].startswith(".")]  # macOS adds `._NAME`
    endings = {path: found for path in shown if (found := by_extension(path, candidates)) is not None}
    if len(endings) == 1:
        path, language = endings.popitem()
        return language, path
    below = {path: each for path in endings if (each := _usual_below(path, endings[path])) is not None}
    if len(below) == 1:
        path, language = below.popitem()
        return language, path
    only = shown[0] if len(shown) == 1 else None
    told = wanted or (by_shebang(tree.head(only, HEAD_BYTES), languages) if only is not None else None)
    if only is None or told is None:
        raise InvalidScript(_looked_for(candidates, sorted(below or endings)))
    return told, only


def _usual_names(tree: Tree, candidates: Sequence[Language]) -> dict[str, Language]:
    """Each language's first usual name that is there; a name of two languages counts for the first."""
    found: dict[str, Language] = {}
    for language in candidates:
        path = next((name for name in language.entrypoints if tree.is_file(name)), None)
        if path is not None and language.name not in {other.name for other in found.values()}:
            found.setdefault(path, language)
    return found


def _usual_below(path: str, language: Language) -> Language | None:
    """The language, if the file is named as its entrypoints are and is no test's."""
    *folders, name = path.split("/")
    usual = {each.rpartition("/")[2] for each in language.entrypoints}
    return language if name in usual and not _TESTS & set(folders) else None


def _looked_for(candidates: Sequence[Language], there: Sequence[str]) -> str:
    names = list(dict.fromkeys(name for language in candidates for name in language.entrypoints))
    looked = f"{', '.join(names)} at the top" if names else "the usual names"
    shown = f": {', '.join(path[-80:] for path in there[:5])}{', …' if len(there) > 5 else ''}" if there else ""
    return (
        f"the script has no entrypoint: looked for {looked}, and for exactly one file with an ending of "
        f"{known_names(candidates)} (there are {len(there)}){shown}; name it with `entrypoint`"
    )
