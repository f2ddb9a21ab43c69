"""Looks into an unpacked image: who its user is, which languages it runs, which packages it holds. Starts nothing."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence

from belljar.images.oci.config import ImageConfig
from belljar.images.oci.tree import RootTree
from belljar.images.prefork_programs import lies_in_root
from belljar.model.errors import InvalidImage
from belljar.model.image import Language, User

#: Runs the image's own command; a script's files lie in /work meanwhile.
COMMAND = "command"
BINARY = Language(name="binary", run=("{entrypoint}",))


def user_of(tree: RootTree, wish: str) -> User:
    """The numbers of USER. Raises InvalidImage for a name that the image does not have."""
    if not wish:
        return User()
    name, _, group = wish.partition(":")
    entry = _entry(tree.read("/etc/passwd"), name)
    uid = entry[2] if entry and len(entry) > 2 else name
    gid = entry[3] if entry and len(entry) > 3 else "0"
    if group:
        found = _entry(tree.read("/etc/group"), group)
        gid = found[2] if found and len(found) > 2 else group
    if not (uid.isascii() and uid.isdigit() and gid.isascii() and gid.isdigit()) or max(int(uid), int(gid)) >= 1 << 31:
        raise InvalidImage(f"the image's USER {wish[:80]!r} is not among its users")
    return User(uid=int(uid), gid=int(gid))


def _entry(text: str, name: str) -> list[str] | None:
    lines = (line.split(":") for line in text.splitlines())
    entries = [line for line in lines if len(line) > 2]
    named = next((line for line in entries if line[0] == name), None)
    return named or next((line for line in entries if line[2] == name), None)


def languages_of(tree: RootTree, wishes: ImageConfig, known: Sequence[Language]) -> tuple[Language, ...]:
    """The languages whose tools are there, run as the image's entrypoint wants it; an executable; its own command."""
    found = []
    for language in known:
        if language.run == ("{entrypoint}",):
            continue
        if lies_in_root(language.prefork):
            language = language.model_copy(update={"prefork": None})
        language = _plain(language)
        if language.name == "shell" and not _program(tree, wishes, "bash"):
            language = language.model_copy(update={"run": ("sh", "{entrypoint}"), "version": ("sh",)})
        tools = [words[0] for words in (language.run, language.compile, language.version) if words]
        if all(tool.startswith("{") or _program(tree, wishes, tool) for tool in tools):
            found.append(_through_entrypoint(language, wishes))
    found.append(BINARY)
    own = (*wishes.entrypoint, *wishes.command)
    if own:
        run = wishes.entrypoint or own
        arguments = wishes.command if wishes.entrypoint else ()
        found.append(Language(name=COMMAND, run=run, default_args=arguments))
    return tuple(found)


def _plain(language: Language) -> Language:
    """The language by commands that need nothing of belljar's in the image."""
    commands = {"run": language.plain_run or language.run, "compile": language.plain_compile or language.compile}
    return language.model_copy(update={**commands, "plain_run": (), "plain_compile": ()})


def _through_entrypoint(language: Language, wishes: ImageConfig) -> Language:
    """ENTRYPOINT stands before every command; where it is the interpreter itself, it takes the interpreter's place."""
    if not wishes.entrypoint or language.run[0].startswith("{"):
        return language
    program = re.sub(r"[0-9.]+\Z", "", wishes.entrypoint[0].rsplit("/", 1)[-1])
    is_interpreter = program in (*language.interpreters, language.run[0], re.sub(r"[0-9.]+\Z", "", language.run[0]))
    rest = language.run[1:] if is_interpreter else language.run
    return language.model_copy(update={"run": (*wishes.entrypoint, *rest)})


def _program(tree: RootTree, wishes: ImageConfig, name: str) -> bool:
    places = [name] if name.startswith("/") else [f"{folder}/{name}" for folder in wishes.search_path]
    return any(_executable(tree, place) for place in places)


def _executable(tree: RootTree, path: str) -> bool:
    real = tree.find(path)
    if real is None:
        return False
    mode = os.lstat(real).st_mode
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def debian_packages(tree: RootTree) -> dict[str, str]:
    """What dpkg says is installed; distroless images keep it in several files."""
    texts = [tree.read("/var/lib/dpkg/status")]
    folder = tree.find("/var/lib/dpkg/status.d")
    if folder is not None and os.path.isdir(folder):  # noqa: PTH112
        names = sorted(os.listdir(folder))[:5000]  # noqa: PTH208
        texts += [tree.read(f"/var/lib/dpkg/status.d/{name}") for name in names if not name.endswith(".md5sums")]
    found = {}
    for stanza in "\n\n".join(texts).split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", stanza, re.M))
        if "Package" in fields and "Version" in fields and "deinstall" not in fields.get("Status", ""):
            found[fields["Package"][:200]] = fields["Version"][:200]
    return found


def alpine_packages(tree: RootTree) -> dict[str, str]:
    """What apk says is installed."""
    found = {}
    for stanza in tree.read("/lib/apk/db/installed").split("\n\n"):
        fields = dict(re.findall(r"^([PV]):(.*)$", stanza, re.M))
        if "P" in fields and "V" in fields:
            found[fields["P"][:200]] = fields["V"][:200]
    return found


def python_packages(tree: RootTree, search: Sequence[str] = ("/usr/local/lib", "/usr/lib")) -> dict[str, str]:
    """Python distributions in the usual folders, by the names of their metadata."""
    found = {}
    for top in search:
        real = tree.find(top)
        for python in sorted(os.listdir(real)) if real and os.path.isdir(real) else ():  # noqa: PTH112, PTH208
            for packages in ("site-packages", "dist-packages"):
                folder = tree.find(f"{top}/{python}/{packages}") if python.startswith("python3") else None
                names = sorted(os.listdir(folder))[:20000] if folder and os.path.isdir(folder) else ()  # noqa: PTH112, PTH208
                for name in names:
                    named = re.fullmatch(r"([A-Za-z0-9._]+)-([^-]+)\.dist-info", name)
                    if named:
                        found[named[1].replace("_", "-").lower()] = named[2]
    return found
