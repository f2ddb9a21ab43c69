"""Inspect an unpacked image: its user, languages and packages. No program of the image is run."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence

from belljar.images.oci.config import ImageConfig
from belljar.images.oci.tree import RootTree
from belljar.images.prefork_programs import needs_file_in_rootfs
from belljar.model.errors import InvalidImage
from belljar.model.image import Language, User

#: The language whose scripts are run by the image's own command, with the script's files in /work.
COMMAND = "command"
BINARY = Language(name="binary", run=("{entrypoint}",))


def user_of(tree: RootTree, declared: str) -> User:
    """Return the uid and gid of a declared USER[:GROUP]. Raises InvalidImage for a name that the image lacks."""
    if not declared:
        return User()
    name, _, group = declared.partition(":")
    entry = _entry(tree.read("/etc/passwd"), name)
    uid = entry[2] if entry and len(entry) > 2 else name
    gid = entry[3] if entry and len(entry) > 3 else "0"
    if group:
        group_entry = _entry(tree.read("/etc/group"), group)
        gid = group_entry[2] if group_entry and len(group_entry) > 2 else group
    if not (uid.isascii() and uid.isdigit() and gid.isascii() and gid.isdigit()) or max(int(uid), int(gid)) >= 1 << 31:
        raise InvalidImage(f"the image's USER {declared[:80]!r} is not in its /etc/passwd or /etc/group")
    return User(uid=int(uid), gid=int(gid))


def _entry(text: str, name: str) -> list[str] | None:
    lines = (line.split(":") for line in text.splitlines())
    entries = [line for line in lines if len(line) > 2]
    named = next((line for line in entries if line[0] == name), None)
    return named or next((line for line in entries if line[2] == name), None)


def languages_of(tree: RootTree, config: ImageConfig, known: Sequence[Language]) -> tuple[Language, ...]:
    """Return the known languages whose tools the image has, with its entrypoint; `binary`; and its own command."""
    languages = []
    for language in known:
        if language.run == ("{entrypoint}",):
            continue
        if needs_file_in_rootfs(language.prefork):
            language = language.model_copy(update={"prefork": None})
        language = _plain(language)
        if language.name == "shell" and not _has_program(tree, config, "bash"):
            language = language.model_copy(update={"run": ("sh", "{entrypoint}"), "version": ("sh",)})
        tools = [command[0] for command in (language.run, language.compile, language.version) if command]
        if all(tool.startswith("{") or _has_program(tree, config, tool) for tool in tools):
            languages.append(_with_entrypoint(language, config))
    languages.append(BINARY)
    command = (*config.entrypoint, *config.command)
    if command:
        run = config.entrypoint or command
        arguments = config.command if config.entrypoint else ()
        languages.append(Language(name=COMMAND, run=run, default_args=arguments))
    return tuple(languages)


def _plain(language: Language) -> Language:
    """Return the language with the commands for images that lack belljar's files."""
    commands = {"run": language.plain_run or language.run, "compile": language.plain_compile or language.compile}
    return language.model_copy(update={**commands, "plain_run": (), "plain_compile": ()})


def _with_entrypoint(language: Language, config: ImageConfig) -> Language:
    """Return the language with ENTRYPOINT before its command, or instead of its interpreter if it is the same."""
    if not config.entrypoint or language.run[0].startswith("{"):
        return language
    program = re.sub(r"[0-9.]+\Z", "", config.entrypoint[0].rsplit("/", 1)[-1])
    is_interpreter = program in (*language.interpreters, language.run[0], re.sub(r"[0-9.]+\Z", "", language.run[0]))
    rest = language.run[1:] if is_interpreter else language.run
    return language.model_copy(update={"run": (*config.entrypoint, *rest)})


def _has_program(tree: RootTree, config: ImageConfig, name: str) -> bool:
    paths = [name] if name.startswith("/") else [f"{folder}/{name}" for folder in config.search_path]
    return any(_is_executable(tree, path) for path in paths)


def _is_executable(tree: RootTree, path: str) -> bool:
    real = tree.find(path)
    if real is None:
        return False
    mode = os.lstat(real).st_mode
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def debian_packages(tree: RootTree) -> dict[str, str]:
    """Return the packages in dpkg's database, name → version; distroless images have it in several files."""
    texts = [tree.read("/var/lib/dpkg/status")]
    folder = tree.find("/var/lib/dpkg/status.d")
    if folder is not None and os.path.isdir(folder):  # noqa: PTH112
        names = sorted(os.listdir(folder))[:5000]  # noqa: PTH208
        texts += [tree.read(f"/var/lib/dpkg/status.d/{name}") for name in names if not name.endswith(".md5sums")]
    packages = {}
    for stanza in "\n\n".join(texts).split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", stanza, re.M))
        if "Package" in fields and "Version" in fields and "deinstall" not in fields.get("Status", ""):
            packages[fields["Package"][:200]] = fields["Version"][:200]
    return packages


def alpine_packages(tree: RootTree) -> dict[str, str]:
    """Return the packages in apk's database, name → version."""
    packages = {}
    for stanza in tree.read("/lib/apk/db/installed").split("\n\n"):
        fields = dict(re.findall(r"^([PV]):(.*)$", stanza, re.M))
        if "P" in fields and "V" in fields:
            packages[fields["P"][:200]] = fields["V"][:200]
    return packages


def python_packages(tree: RootTree, search: Sequence[str] = ("/usr/local/lib", "/usr/lib")) -> dict[str, str]:
    """Return the Python distributions below the folders, name → version, from the names of their metadata."""
    distributions = {}
    for top in search:
        real = tree.find(top)
        for python in sorted(os.listdir(real)) if real and os.path.isdir(real) else ():  # noqa: PTH112, PTH208
            for modules in ("site-packages", "dist-packages"):
                folder = tree.find(f"{top}/{python}/{modules}") if python.startswith("python3") else None
                names = sorted(os.listdir(folder))[:20000] if folder and os.path.isdir(folder) else ()  # noqa: PTH112, PTH208
                for name in names:
                    match = re.fullmatch(r"([A-Za-z0-9._]+)-([^-]+)\.dist-info", name)
                    if match:
                        distributions[match[1].replace("_", "-").lower()] = match[2]
    return distributions
