"""What a script says that it needs: inline metadata (PEP 723), requirements.txt, pyproject.toml, package.json.

Only names and versions from a package index are taken: no addresses, no paths, no options, since what is installed is
decided by the operator's index, and two scripts that want the same share what was installed. Nothing is installed here.
Sources: PEP 723 and its reference implementation, PEP 508, PEP 621, pip's requirements file format, npm's package.json.
"""

from __future__ import annotations

import codecs
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from belljar.model.errors import InvalidDependencies
from belljar.model.image import Image
from belljar.model.script import Dependencies

_OPEN = re.compile(r"# /// ([a-zA-Z0-9-]+)\Z")
_VERSION = re.compile(r"[0-9]+\.[0-9]+(\.[0-9]+)?")
_MAX_FILE_BYTES = 512 * 1024
#: tomllib and PEP 723's blocks are read by Python itself.
_MAX_TOML_BYTES = 128 * 1024
#: tomllib takes the square of a key's parts, and a key does not go over its line.
_MAX_TOML_LINE = 1000
#: Byte order marks, and what an editor calls that encoding; the longer of two that begin alike comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MAX_REQUIREMENTS = 500
_MAX_REQUIREMENT = 300
_NPM_NAME = re.compile(r"(@[a-z0-9-~][a-z0-9-._~]*/)?[a-z0-9-~][a-z0-9-._~]*\Z")
_NPM_RANGE = re.compile(r"[A-Za-z0-9.^~<>=|* +-]{0,100}\Z")


#: Whose packages they are: the language, and what people call it.
_RUNTIMES = {"pypi": ("python", "Python"), "npm": ("node", "Node.js")}


class Files(Protocol):
    """The files of a script: `belljar.scripts.tree.Tree`."""

    def is_file(self, path: str) -> bool: ...

    def is_folder(self, path: str) -> bool: ...

    def head(self, path: str, count: int) -> bytes: ...


def check_runtime(needs: Dependencies, image: Image) -> None:
    """Raises InvalidDependencies when the image lacks what runs the packages, or has a version of Python that will not
    do. What npm calls engines is advice.
    """
    runs, shown = _RUNTIMES[needs.kind]
    if needs.requirements and not _has_runtime(image, runs):
        raise InvalidDependencies(
            f"{needs.origin} asks for packages of {shown}, and the image {image.name} has none; choose an image with "
            f"{shown}, or leave the file out"
        )
    if needs.kind != "pypi" or not needs.runtime:
        return
    said = _VERSION.search(image.manifest.versions.get("python", ""))
    if said is not None and not SpecifierSet(needs.runtime).contains(said[0], prereleases=True):
        raise InvalidDependencies(
            f"{needs.origin} asks for Python {needs.runtime}, and the image {image.name} has {said[0]}; choose another "
            "image, or ask for less"
        )


def _has_runtime(image: Image, language: str) -> bool:
    """Whether the image has that language's interpreter; where nobody knows what is in it, the installer will see."""
    package = {"python": "python3", "node": "nodejs"}[language]
    known = image.manifest.packages
    return not known or package in known or image.language(language) is not None


def read_dependencies(files: Files, language: str, entrypoint: str) -> Dependencies | None:
    """What the script needs, None when it says nothing. The entrypoint's own words come before files beside it.

    Raises InvalidDependencies, saying where and what to do.
    """
    if language == "python":
        shown = "".join(letter for letter in entrypoint if letter.isprintable())[-80:]
        inline = inline_dependencies(_text(files, entrypoint), shown)
        if inline is not None:
            return inline
        return _python_files(files)
    if language == "node":
        return _node_files(files)
    if language == "shell":
        return _shell_files(files)
    return None


def _python_files(files: Files) -> Dependencies | None:
    if files.is_file("requirements.txt"):
        return requirements_file(_text(files, "requirements.txt"))
    if files.is_file("pyproject.toml"):
        return project_file(_text(files, "pyproject.toml", _MAX_TOML_BYTES))
    return None


def _node_files(files: Files) -> Dependencies | None:
    if files.is_file("package.json") and not files.is_folder("node_modules"):
        return package_file(_text(files, "package.json"))
    return None


def _shell_files(files: Files) -> Dependencies | None:
    """What the interpreters need that a shell script starts. Raises InvalidDependencies for packages of two kinds."""
    found = [each for each in (_python_files(files), _node_files(files)) if each is not None and each.requirements]
    if len(found) > 1:
        raise InvalidDependencies(
            f"{found[0].origin} and {found[1].origin} both name packages, and those of one kind are installed; leave "
            "one of the files out"
        )
    return found[0] if found else None


def inline_dependencies(text: str, origin: str) -> Dependencies | None:
    """PEP 723's `# /// script` block. Raises InvalidDependencies for one that is malformed, or for two."""
    lines = [line.rstrip(" \t\r") if line.startswith("#") else line for line in text.split("\n")]
    blocks = [content for kind, content in _blocks(lines) if kind == "script"]
    if len(blocks) > 1:
        raise InvalidDependencies(f"{origin} has {len(blocks)} script blocks; PEP 723 allows one")
    if not blocks:
        if any(line == "# /// script" for line in lines):
            raise InvalidDependencies(f"{origin} begins a script block that does not end; close it with a line '# ///'")
        return None
    content = "\n".join(line[2:] if line.startswith("# ") else line[1:] for line in blocks[0])
    where = f"the script block of {origin}"
    if len(content) > _MAX_TOML_BYTES:
        raise InvalidDependencies(f"{where} is over {_MAX_TOML_BYTES // 1024} KB; shorten it")
    return _project(_toml(content, where), where, "requires-python")


def _blocks(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Kind and content of each block, as PEP 723's regular expression finds them, in one pass: the expression itself
    takes the square of the text's length for blocks that do not end."""
    at = 0
    while at < len(lines):
        opened = _OPEN.match(lines[at])
        if opened is None:
            at += 1
            continue
        end, closed = at + 1, None
        while end < len(lines) and (lines[end] == "#" or lines[end].startswith("# ")):
            if lines[end] == "# ///":
                closed = end
            end += 1
        if closed is not None:
            yield opened[1], lines[at + 1 : closed]
        # Without an end no later block of the same comment has one either.
        at = end if closed is None else closed + 1


def requirements_file(text: str) -> Dependencies | None:
    """A requirements.txt of names and versions; hashes are left to the lock."""
    origin = "requirements.txt"
    lines = re.sub(r"\\\r?\n", " ", text).splitlines()
    found: list[str] = []
    for number, line in enumerate(lines, start=1):
        wanted = re.sub(r"(^|\s)#.*$", "", line).strip()
        wanted = re.sub(r"\s--hash=\S+", "", wanted).strip()
        if wanted.startswith("-"):
            raise InvalidDependencies(
                f"{origin}, line {number}: options are not taken ({wanted[:40]!r}); give names and versions only"
            )
        if wanted:
            _at_most(len(found) + 1, origin)
            found.append(_requirement(wanted, f"{origin}, line {number}"))
    return _dependencies("pypi", found, None, origin)


def project_file(text: str) -> Dependencies | None:
    """`[project]` of a pyproject.toml."""
    document = _toml(text, "pyproject.toml")
    project = document.get("project", {})
    if not isinstance(project, dict):
        raise InvalidDependencies("pyproject.toml: project is no table; begin it with a line [project]")
    dynamic = project.get("dynamic", [])
    if isinstance(dynamic, list) and "dependencies" in dynamic:
        raise InvalidDependencies(
            "pyproject.toml says that its dependencies are made by a build; list them in requirements.txt or in "
            "project.dependencies"
        )
    return _project(project, "pyproject.toml", "requires-python")


def package_file(text: str) -> Dependencies | None:
    """`dependencies` and `engines` of a package.json."""
    origin = "package.json"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidDependencies(f"{origin} is no JSON") from None
    wanted = document.get("dependencies", {}) if isinstance(document, dict) else None
    if not isinstance(wanted, dict):
        raise InvalidDependencies(f"{origin}: dependencies is no object of names and versions")
    _at_most(len(wanted), origin)
    found = []
    for name, version in wanted.items():
        if not _NPM_NAME.match(name) or not isinstance(version, str) or not _NPM_RANGE.match(version):
            raise InvalidDependencies(f"{origin}: {str(name)[:60]!r} is not taken; give names and versions only")
        found.append(f"{name}@{version or '*'}")
    engines = document.get("engines") if isinstance(document.get("engines"), dict) else {}
    node = engines.get("node") if isinstance(engines.get("node"), str) else None
    return _dependencies("npm", found, node, origin)


def _project(table: Mapping[str, Any], origin: str, runtime_name: str) -> Dependencies | None:
    wanted, runtime = table.get("dependencies", []), table.get(runtime_name)
    if not isinstance(wanted, list) or any(not isinstance(each, str) for each in wanted):
        raise InvalidDependencies(f"{origin}: dependencies is no list of texts")
    _at_most(len(wanted), origin)
    if runtime is not None:
        try:
            if not isinstance(runtime, str) or len(runtime) > _MAX_REQUIREMENT:
                raise InvalidSpecifier
            SpecifierSet(runtime)
        except InvalidSpecifier:
            raise InvalidDependencies(f"{origin}: {runtime_name} is none: {str(runtime)[:60]!r}") from None
    return _dependencies("pypi", [_requirement(each, origin) for each in wanted], runtime, origin)


def _requirement(text: str, origin: str) -> str:
    """One requirement in its one spelling. Raises InvalidDependencies for addresses and what is no requirement."""
    if len(text) > _MAX_REQUIREMENT:
        raise InvalidDependencies(f"{origin}: a requirement is over {_MAX_REQUIREMENT} characters")
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        raise InvalidDependencies(f"{origin}: {text[:60]!r} is no requirement; write it as name==1.2.3") from None
    if requirement.url:
        raise InvalidDependencies(f"{origin}: {text[:60]!r} names an address; packages come from the index only")
    requirement.name = canonicalize_name(requirement.name)
    return str(requirement)


def _dependencies(
    kind: Literal["pypi", "npm"], found: list[str], runtime: str | None, origin: str
) -> Dependencies | None:
    if not found and not runtime:
        return None
    return Dependencies(kind=kind, requirements=tuple(sorted(set(found))), runtime=runtime, origin=origin)


def _at_most(count: int, origin: str) -> None:
    """Raises InvalidDependencies for more than are taken: before they are read, which takes time."""
    if count > _MAX_REQUIREMENTS:
        raise InvalidDependencies(
            f"{origin} has over {_MAX_REQUIREMENTS} requirements, which is the most that is taken"
        )


def _toml(text: str, origin: str) -> dict[str, Any]:
    if any(len(line) > _MAX_TOML_LINE for line in text.splitlines()):
        raise InvalidDependencies(f"{origin} has a line of over {_MAX_TOML_LINE} characters; break it")
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidDependencies(f"{origin} is not TOML: {str(error)[:200]}") from None


def _text(files: Files, path: str, most: int = _MAX_FILE_BYTES) -> str:
    """A file's text in the encodings that editors write. Raises InvalidDependencies for others, and for a long file."""
    data = files.head(path, most + 1)
    is_declaration = path.endswith((".txt", ".toml", ".json"))
    if len(data) > most and is_declaration:
        raise InvalidDependencies(f"{path} is over {most // 1024} KB; shorten it")
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    if not is_declaration:
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
    try:
        is_utf8 = encoding == "utf-8"
        text = data.removeprefix(mark).decode("utf-8", "replace") if is_utf8 else data.decode(encoding)
    except UnicodeDecodeError:
        raise InvalidDependencies(f"{path} begins as {encoding.upper()} and is none; save it as UTF-8") from None
    if "\0" in text:
        raise InvalidDependencies(f"{path} holds NUL characters, as UTF-16 without a mark does; save it as UTF-8")
    return text
