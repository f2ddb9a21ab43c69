"""Choose the file of a script that is run, and the name of a one-file script in the machine."""

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
#: Folders whose programs are not a project's entrypoint.
_NON_ENTRYPOINT_FOLDERS = frozenset({"test", "tests", "examples", "vendor", "node_modules", "third_party"})
_UNSAFE_CHARACTER = re.compile(r"[^A-Za-z0-9._-]")


def file_name(filename: str, language: Language) -> str:
    """Return a name for a one-file script in the machine.

    It is the base name with characters other than [A-Za-z0-9._-] as `_`; else the language's first entrypoint name;
    else `main` with the language's extension. A compiled file gets an extension that its compiler knows. The name
    becomes a path and perhaps an argument in the machine, so it begins with a letter, a digit or `_`.
    """
    name = _UNSAFE_CHARACTER.sub("_", base_name(filename))
    if language.compile and language.extensions and not name.endswith(language.extensions):
        stem, dot, extension = name.rpartition(".")
        known = dot + extension.lower() in language.extensions
        name = f"{stem}.{extension.lower()}" if known else name + language.extensions[0]
    if len(name) <= _MAX_NAME and name[:1] not in ("", ".", "-") and re.search(r"[A-Za-z0-9]", name.split(".")[0]):
        return name
    default = next((name for name in language.entrypoints if name.endswith(language.extensions)), None)
    return default or "main" + (language.extensions[0] if language.extensions else "")


def base_name(filename: str) -> str:
    """Return the part of a path after its last slash or backslash."""
    return re.split(r"[/\\]", filename)[-1]


def choose_entrypoint(
    tree: Tree, languages: Sequence[Language], *, language: str | None, entrypoint: str | None
) -> tuple[Language, str]:
    """Return the language and the entrypoint of a tree with several files; the only top folder becomes the root.

    The entrypoint is the given one; else the first of the language's entrypoint names at the top; else the only file
    with a known extension; else the only file with an entrypoint name in any folder; else the only file.

    Raises InvalidScript with the names that were tried, UnknownLanguage.
    """
    declared = named_language(language, languages) if language is not None else None
    if entrypoint is not None:
        path = _check_entrypoint(tree, entrypoint)
        chosen = declared or detect_language(path, tree.head(path, HEAD_BYTES), languages)
    else:
        tree.strip_folder()
        chosen, path = _find_entrypoint(tree, declared, languages)
    check_content(path, tree.head(path, HEAD_BYTES), chosen)
    return chosen, path


def _check_entrypoint(tree: Tree, entrypoint: str) -> str:
    path = member_path(entrypoint, max_depth=1024)
    if tree.is_file(path) or (tree.strip_folder() and tree.is_file(path)):
        return path
    files = sorted({*tree.files, *tree.links})
    shown = ", ".join(files[:5]) + (", …" if len(files) > 5 else "")
    raise InvalidScript(f"the entrypoint {path[:80]!r} is not a file of the script; its files: {shown}")


def _find_entrypoint(tree: Tree, declared: Language | None, languages: Sequence[Language]) -> tuple[Language, str]:
    candidates = languages if declared is None else [declared]
    named = _with_entrypoint_name(tree, candidates)
    if len(named) > 1:
        options = ", ".join(f"{path} ({language.name})" for path, language in named.items())
        raise InvalidScript(f"the script has several possible entrypoints: {options}; give `entrypoint` or `language`")
    for path, language in named.items():
        return language, path
    visible = [path for path in tree.files if not path.rpartition("/")[2].startswith(".")]  # macOS adds `._NAME`
    known = {path: match for path in visible if (match := by_extension(path, candidates)) is not None}
    if len(known) == 1:
        path, language = known.popitem()
        return language, path
    nested = {path: language for path, language in known.items() if _has_entrypoint_name(path, language)}
    if len(nested) == 1:
        path, language = nested.popitem()
        return language, path
    only = visible[0] if len(visible) == 1 else None
    chosen = declared or (by_shebang(tree.head(only, HEAD_BYTES), languages) if only is not None else None)
    if only is None or chosen is None:
        raise InvalidScript(_no_entrypoint(candidates, sorted(nested or known)))
    return chosen, only


def _with_entrypoint_name(tree: Tree, candidates: Sequence[Language]) -> dict[str, Language]:
    """Return the first existing entrypoint name of each language; a name of two languages counts for the first."""
    named: dict[str, Language] = {}
    for language in candidates:
        path = next((name for name in language.entrypoints if tree.is_file(name)), None)
        if path is not None and language.name not in {other.name for other in named.values()}:
            named.setdefault(path, language)
    return named


def _has_entrypoint_name(path: str, language: Language) -> bool:
    """Return whether the file has one of the language's entrypoint names and is not in a folder of tests or vendors."""
    *folders, name = path.split("/")
    names = {entrypoint.rpartition("/")[2] for entrypoint in language.entrypoints}
    return name in names and not _NON_ENTRYPOINT_FOLDERS & set(folders)


def _no_entrypoint(candidates: Sequence[Language], files: Sequence[str]) -> str:
    names = list(dict.fromkeys(name for language in candidates for name in language.entrypoints))
    default = f", or put {' or '.join(names[:4])}{' or …' if len(names) > 4 else ''} at the top" if names else ""
    if files:
        shown = f"{', '.join(path[-80:] for path in files[:5])}{', …' if len(files) > 5 else ''}"
        found = f"{len(files)} files could be it: {shown}"
    else:
        found = f"no file has an extension of {known_names(candidates)}"
    return f"the script has no entrypoint: {found}; give `entrypoint`{default}"
