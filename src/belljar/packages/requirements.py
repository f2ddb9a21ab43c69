"""Parse the packages that a script declares: inline metadata (PEP 723), requirements.txt, pyproject.toml, package.json.

Only names and versions are accepted, no URLs, paths or options: the operator's index provides the packages, and scripts
with equal requirements share an installation. Nothing is installed here. Sources: PEP 723 and its reference
implementation, PEP 508, PEP 621, pip's requirements file format, npm's package.json.
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

_BLOCK_START = re.compile(r"# /// ([a-zA-Z0-9-]+)\Z")
_VERSION = re.compile(r"[0-9]+\.[0-9]+(\.[0-9]+)?")
_MAX_FILE_BYTES = 512 * 1024
#: TOML has a lower limit because tomllib is pure Python.
_MAX_TOML_BYTES = 128 * 1024
#: tomllib takes quadratic time for the parts of a key, which is within a line.
_MAX_TOML_LINE = 1000
#: Byte order marks and their encodings; of two with the same beginning the longer comes first.
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


#: Kind of packages → the language that uses them, and its name for people.
_RUNTIMES = {"pypi": ("python", "Python"), "npm": ("node", "Node.js")}


class ScriptFiles(Protocol):
    """Reads the files of a script: `belljar.scripts.tree.Tree`."""

    def is_file(self, path: str) -> bool: ...

    def is_folder(self, path: str) -> bool: ...

    def head(self, path: str, count: int) -> bytes: ...


def check_runtime(dependencies: Dependencies, image: Image) -> None:
    """Raise InvalidDependencies when the image lacks the packages' interpreter, or has an unsuitable Python version.

    The engines of a package.json are not checked, since npm treats them as advice.
    """
    language, shown = _RUNTIMES[dependencies.kind]
    if dependencies.requirements and not _has_runtime(image, language):
        raise InvalidDependencies(
            f"{dependencies.origin} requires {shown} packages, but the image {image.name} has no {shown}; choose an "
            f"image with {shown}, or leave the file out"
        )
    if dependencies.kind != "pypi" or not dependencies.runtime:
        return
    version = _VERSION.search(image.manifest.versions.get("python", ""))
    if version is not None and not SpecifierSet(dependencies.runtime).contains(version[0], prereleases=True):
        raise InvalidDependencies(
            f"{dependencies.origin} requires Python {dependencies.runtime}, but the image {image.name} has "
            f"{version[0]}; choose another image, or change the requirement"
        )


def _has_runtime(image: Image, language: str) -> bool:
    """Return whether the image has the language's interpreter, or its packages are unknown."""
    package = {"python": "python3", "node": "nodejs"}[language]
    known = image.manifest.packages
    return not known or package in known or image.language(language) is not None


def read_dependencies(files: ScriptFiles, language: str, entrypoint: str) -> Dependencies | None:
    """Return the packages that the script declares, None without a declaration. Inline metadata precedes files.

    Raises InvalidDependencies with the place of the error.
    """
    if language == "python":
        shown = "".join(character for character in entrypoint if character.isprintable())[-80:]
        inline = inline_dependencies(_text(files, entrypoint), shown)
        if inline is not None:
            return inline
        return _python_files(files)
    if language == "node":
        return _node_files(files)
    if language == "shell":
        return _shell_files(files)
    return None


def _python_files(files: ScriptFiles) -> Dependencies | None:
    if files.is_file("requirements.txt"):
        return requirements_file(_text(files, "requirements.txt"))
    if files.is_file("pyproject.toml"):
        return project_file(_text(files, "pyproject.toml", _MAX_TOML_BYTES))
    return None


def _node_files(files: ScriptFiles) -> Dependencies | None:
    if files.is_file("package.json") and not files.is_folder("node_modules"):
        return package_file(_text(files, "package.json"))
    return None


def _shell_files(files: ScriptFiles) -> Dependencies | None:
    """Return the packages for interpreters that a shell script starts. Raises InvalidDependencies for two kinds."""
    declared = [each for each in (_python_files(files), _node_files(files)) if each is not None and each.requirements]
    if len(declared) > 1:
        raise InvalidDependencies(
            f"{declared[0].origin} and {declared[1].origin} both declare packages, but only one kind is supported; "
            "leave one of the files out"
        )
    return declared[0] if declared else None


def inline_dependencies(text: str, origin: str) -> Dependencies | None:
    """Parse PEP 723's `# /// script` block. Raises InvalidDependencies when it is malformed, or not the only one."""
    lines = [line.rstrip(" \t\r") if line.startswith("#") else line for line in text.split("\n")]
    blocks = [content for kind, content in _blocks(lines) if kind == "script"]
    if len(blocks) > 1:
        raise InvalidDependencies(f"{origin} has {len(blocks)} script blocks; PEP 723 allows one")
    if not blocks:
        if any(line == "# /// script" for line in lines):
            raise InvalidDependencies(f"{origin} has an unclosed script block; close it with a line '# ///'")
        return None
    content = "\n".join(line[2:] if line.startswith("# ") else line[1:] for line in blocks[0])
    block = f"the script block of {origin}"
    if len(content) > _MAX_TOML_BYTES:
        raise InvalidDependencies(f"{block} is over {_MAX_TOML_BYTES // 1024} KB; shorten it")
    return _project(_toml(content, block), block)


def _blocks(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the kind and the lines of each block, equal to PEP 723's regular expression.

    That expression takes quadratic time for unclosed blocks; this takes one pass.
    """
    index = 0
    while index < len(lines):
        start = _BLOCK_START.match(lines[index])
        if start is None:
            index += 1
            continue
        end, closed = index + 1, None
        while end < len(lines) and (lines[end] == "#" or lines[end].startswith("# ")):
            if lines[end] == "# ///":
                closed = end
            end += 1
        if closed is not None:
            yield start[1], lines[index + 1 : closed]
        # If a block is not closed, no later one in the same comment is.
        index = end if closed is None else closed + 1


def requirements_file(text: str) -> Dependencies | None:
    """Parse a requirements.txt of names and versions; hashes are ignored. Raises InvalidDependencies."""
    origin = "requirements.txt"
    lines = re.sub(r"\\\r?\n", " ", text).splitlines()
    requirements: list[str] = []
    for number, line in enumerate(lines, start=1):
        requirement = re.sub(r"(^|\s)#.*$", "", line).strip()
        requirement = re.sub(r"\s--hash=\S+", "", requirement).strip()
        if requirement.startswith("-"):
            raise InvalidDependencies(
                f"{origin}, line {number}: options are not supported ({requirement[:40]!r}); give only names and "
                "versions"
            )
        if requirement:
            _check_count(len(requirements) + 1, origin)
            requirements.append(_requirement(requirement, f"{origin}, line {number}"))
    return _dependencies("pypi", requirements, None, origin)


def project_file(text: str) -> Dependencies | None:
    """Parse `[project]` of a pyproject.toml. Raises InvalidDependencies."""
    document = _toml(text, "pyproject.toml")
    project = document.get("project", {})
    if not isinstance(project, dict):
        raise InvalidDependencies("pyproject.toml: project is not a table; begin it with a line [project]")
    dynamic = project.get("dynamic", [])
    if isinstance(dynamic, list) and "dependencies" in dynamic:
        raise InvalidDependencies(
            "pyproject.toml has dynamic dependencies, which are not supported; list them in requirements.txt or in "
            "project.dependencies"
        )
    return _project(project, "pyproject.toml")


def package_file(text: str) -> Dependencies | None:
    """Parse `dependencies` and `engines` of a package.json. Raises InvalidDependencies."""
    origin = "package.json"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidDependencies(f"{origin} is not JSON") from None
    declared = document.get("dependencies", {}) if isinstance(document, dict) else None
    if not isinstance(declared, dict):
        raise InvalidDependencies(f"{origin}: dependencies is not an object of names and versions")
    _check_count(len(declared), origin)
    requirements = []
    for name, version in declared.items():
        if not _NPM_NAME.match(name) or not isinstance(version, str) or not _NPM_RANGE.match(version):
            raise InvalidDependencies(f"{origin}: {str(name)[:60]!r} is not supported; give names and versions only")
        requirements.append(f"{name}@{version or '*'}")
    engines = document.get("engines") if isinstance(document.get("engines"), dict) else {}
    node = engines.get("node") if isinstance(engines.get("node"), str) else None
    return _dependencies("npm", requirements, node, origin)


def _project(table: Mapping[str, Any], origin: str) -> Dependencies | None:
    declared, runtime = table.get("dependencies", []), table.get("requires-python")
    if not isinstance(declared, list) or any(not isinstance(each, str) for each in declared):
        raise InvalidDependencies(f"{origin}: dependencies is not a list of strings")
    _check_count(len(declared), origin)
    if runtime is not None:
        try:
            if not isinstance(runtime, str) or len(runtime) > _MAX_REQUIREMENT:
                raise InvalidSpecifier
            SpecifierSet(runtime)
        except InvalidSpecifier:
            raise InvalidDependencies(f"{origin}: invalid requires-python: {str(runtime)[:60]!r}") from None
    return _dependencies("pypi", [_requirement(each, origin) for each in declared], runtime, origin)


def _requirement(text: str, origin: str) -> str:
    """Return a requirement in its canonical spelling. Raises InvalidDependencies when it is invalid or has a URL."""
    if len(text) > _MAX_REQUIREMENT:
        raise InvalidDependencies(f"{origin}: a requirement is over {_MAX_REQUIREMENT} characters")
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        raise InvalidDependencies(f"{origin}: {text[:60]!r} is not a valid requirement; write name==1.2.3") from None
    if requirement.url:
        raise InvalidDependencies(f"{origin}: {text[:60]!r} has a URL; packages come from the index only")
    requirement.name = canonicalize_name(requirement.name)
    return str(requirement)


def _dependencies(
    kind: Literal["pypi", "npm"], requirements: list[str], runtime: str | None, origin: str
) -> Dependencies | None:
    if not requirements and not runtime:
        return None
    return Dependencies(kind=kind, requirements=tuple(sorted(set(requirements))), runtime=runtime, origin=origin)


def _check_count(count: int, origin: str) -> None:
    """Raise InvalidDependencies for too many requirements, before they are parsed."""
    if count > _MAX_REQUIREMENTS:
        raise InvalidDependencies(f"{origin} has over {_MAX_REQUIREMENTS} requirements; remove some")


def _toml(text: str, origin: str) -> dict[str, Any]:
    if any(len(line) > _MAX_TOML_LINE for line in text.splitlines()):
        raise InvalidDependencies(f"{origin} has a line of over {_MAX_TOML_LINE} characters; break it")
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidDependencies(f"{origin} is not TOML: {str(error)[:200]}") from None


def _text(files: ScriptFiles, path: str, max_bytes: int = _MAX_FILE_BYTES) -> str:
    """Return a file's text in the encodings of common editors. Raises InvalidDependencies for others, and if too long.

    Of a script only the first `max_bytes` are read.
    """
    data = files.head(path, max_bytes + 1)
    is_declaration = path.endswith((".txt", ".toml", ".json"))
    if len(data) > max_bytes and is_declaration:
        raise InvalidDependencies(f"{path} is over {max_bytes // 1024} KB; shorten it")
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    if not is_declaration:
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
    try:
        is_utf8 = encoding == "utf-8"
        text = data.removeprefix(mark).decode("utf-8", "replace") if is_utf8 else data.decode(encoding)
    except UnicodeDecodeError:
        raise InvalidDependencies(f"{path} is not valid {encoding.upper()}; save it as UTF-8") from None
    if "\0" in text:
        raise InvalidDependencies(f"{path} contains NUL characters, like UTF-16 without a mark; save it as UTF-8")
    return text
