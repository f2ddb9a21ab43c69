"""From an uploaded file, archive or folder to a disk for a machine: the whole way of a script, with no server.

Steps: tell what it is, unpack it into a tree, choose language and entrypoint, check the links, read what packages it
asks for, name it by its content, pack it.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from belljar.model.errors import InvalidScript
from belljar.model.image import Language
from belljar.model.script import Dependencies
from belljar.packages.requirements import read_dependencies
from belljar.scripts.archive import HEAD_BYTES as ARCHIVE_HEAD_BYTES
from belljar.scripts.archive import archive_kind, unpack
from belljar.scripts.entrypoint import base_name, choose_entrypoint, file_name
from belljar.scripts.folder import copy_folder
from belljar.scripts.language import ELF, HEAD_BYTES, check_content, detect_language, named_language
from belljar.scripts.limits import ExtractionBudget, UploadLimits
from belljar.scripts.pack import pack_tree
from belljar.scripts.selection import Selection
from belljar.scripts.tree import CHUNK_BYTES, Tree
from belljar.scripts.uploads import in_thread, too_large
from belljar.system.host_errors import disk_full_errors

_MAX_NAME = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadHints:
    """What the caller says about an upload; None: find out."""

    filename: str
    language: str | None = None
    entrypoint: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpacked:
    """A script whose files lie in the folder `tree`, checked and named."""

    id: str
    name: str
    language: str
    entrypoint: str
    size_bytes: int
    file_count: int
    dependencies: Dependencies | None
    tree: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A script whose files are packed into the filesystem image `disk`."""

    id: str
    name: str
    language: str
    entrypoint: str
    size_bytes: int
    file_count: int
    dependencies: Dependencies | None
    disk: Path


async def prepare(
    source: Path,
    *,
    filename: str,
    language: str | None,
    entrypoint: str | None,
    languages: Sequence[Language],
    limits: UploadLimits,
    work: Path,
    selection: Selection | None = None,
) -> Prepared:
    """Make a script of a file, an archive or a folder, of which `selection` says what belongs to it.

    The disk lies in `work`, an empty folder (an absolute path) that the caller removes. Raises
    InvalidScript, UnknownLanguage, TooLarge, DiskFull, MissingTool.
    """
    wish = UploadHints(filename=filename, language=language, entrypoint=entrypoint)
    unpacked = await unpack_source(source, wish, languages=languages, limits=limits, work=work, selection=selection)
    disk = work / "script.erofs"
    await pack_tree(unpacked.tree, disk)
    return Prepared(
        id=unpacked.id,
        name=unpacked.name,
        language=unpacked.language,
        entrypoint=unpacked.entrypoint,
        size_bytes=unpacked.size_bytes,
        file_count=unpacked.file_count,
        dependencies=unpacked.dependencies,
        disk=disk,
    )


async def unpack_source(
    source: Path,
    wish: UploadHints,
    *,
    languages: Sequence[Language],
    limits: UploadLimits,
    work: Path,
    selection: Selection | None = None,
) -> Unpacked:
    """The steps before packing; the tree lies in `work`. Raises InvalidScript, UnknownLanguage, TooLarge, DiskFull."""
    packed_bytes = await in_thread(partial(_packed_bytes, source))
    allowance = ExtractionBudget(limits, packed_bytes)

    def steps() -> Unpacked:
        if packed_bytes is None:
            return _unpack_folder(source, wish, languages, allowance, work, selection)
        if packed_bytes == 0:
            raise InvalidScript("the script is empty (0 bytes); upload a file with something in it")
        if packed_bytes > limits.max_upload_bytes:
            raise too_large(limits.max_upload_bytes)
        return _unpack_file(source, wish, languages, allowance, work)

    return await _stoppable(steps, allowance, work)


async def unpack_files(
    files: Mapping[str, str], wish: UploadHints, *, languages: Sequence[Language], limits: UploadLimits, work: Path
) -> Unpacked:
    """The same for texts by path. Raises InvalidScript, UnknownLanguage, TooLarge, DiskFull."""
    allowance = ExtractionBudget(limits)

    def steps() -> Unpacked:
        tree = _new_tree(work, allowance)
        total = 0
        for path, text in files.items():
            data = _encoded(path, text)
            total += len(data)
            if total > limits.max_upload_bytes:
                raise too_large(limits.max_upload_bytes)
            tree.add_file(path, _chunked(data), executable=data.startswith(b"#!"))
        if files and total == 0:
            raise InvalidScript("the script is empty (0 bytes); put something into its files")
        return _finish_several(tree, wish, languages)

    return await _stoppable(steps, allowance, work)


async def _stoppable(steps: Callable[[], Unpacked], allowance: ExtractionBudget, work: Path) -> Unpacked:
    def run() -> Unpacked:
        try:
            with disk_full_errors("unpack the script"):
                return steps()
        except PermissionError as error:
            raise InvalidScript(f"cannot read {error.filename}; let the user who runs belljar read it") from error

    return await in_thread(run, stop=allowance.stop.set)


# --- the steps; all of it blocks and runs in a thread ---------------------------------------------------------------


def _packed_bytes(source: Path) -> int | None:
    """The length of a file; None for a folder."""
    try:
        about = source.stat()
        if stat.S_ISREG(about.st_mode):
            source.open("rb").close()  # told before anything is done
    except OSError as error:
        raise InvalidScript(f"cannot read {source}: {error.strerror}; give a file, an archive or a folder") from None
    if stat.S_ISDIR(about.st_mode):
        return None
    if not stat.S_ISREG(about.st_mode):
        raise InvalidScript(f"{source} is a device, pipe or socket; give a file, an archive or a folder")
    return about.st_size


def _unpack_file(
    source: Path, wish: UploadHints, languages: Sequence[Language], allowance: ExtractionBudget, work: Path
) -> Unpacked:
    with source.open("rb") as file:
        head = file.read(max(HEAD_BYTES, ARCHIVE_HEAD_BYTES))
    kind = archive_kind(head, wish.filename)
    tree = _new_tree(work, allowance)
    if kind is None:
        return _take_one_file(source, head, tree, wish, languages)
    unpack(source, kind, tree, allowance, spare=work / "plain.tar")
    return _finish_several(tree, wish, languages)


def _unpack_folder(
    source: Path,
    wish: UploadHints,
    languages: Sequence[Language],
    allowance: ExtractionBudget,
    work: Path,
    selection: Selection | None,
) -> Unpacked:
    tree = _new_tree(work, allowance)
    copy_folder(source, tree, selection)
    return _finish_several(tree, wish, languages)


def _take_one_file(source: Path, head: bytes, tree: Tree, wish: UploadHints, languages: Sequence[Language]) -> Unpacked:
    if wish.language is not None:
        language = named_language(wish.language, languages)
    else:
        language = detect_language(wish.filename, head, languages)
    check_content(base_name(wish.filename), head, language)
    name = file_name(wish.filename, language)
    if wish.entrypoint is not None and wish.entrypoint not in (name, base_name(wish.filename)):
        raise InvalidScript(
            f"the upload is one file, {name}, and not {wish.entrypoint[:80]!r}; `entrypoint` is for archives"
        )
    with source.open("rb") as file:
        tree.add_file(name, iter(lambda: file.read(CHUNK_BYTES), b""), executable=head.startswith((b"#!", ELF)))
    return _unpacked(tree, wish, language, name)


def _finish_several(tree: Tree, wish: UploadHints, languages: Sequence[Language]) -> Unpacked:
    if not tree.files:
        raise InvalidScript("the script holds no file; add the one that is to be run")
    language, path = choose_entrypoint(tree, languages, language=wish.language, entrypoint=wish.entrypoint)
    tree.seal()
    return _unpacked(tree, wish, language, path)


def _unpacked(tree: Tree, wish: UploadHints, language: Language, entrypoint: str) -> Unpacked:
    return Unpacked(
        id=tree.digest(language.name, entrypoint),
        name=_shown_name(wish.filename) or entrypoint,
        language=language.name,
        entrypoint=entrypoint,
        size_bytes=tree.size_bytes,
        file_count=len(tree.files),
        dependencies=read_dependencies(tree, language.name, entrypoint),
        tree=tree.root,
    )


def _new_tree(work: Path, allowance: ExtractionBudget) -> Tree:
    root = work / "tree"
    root.mkdir()
    return Tree(root, allowance)


def _shown_name(filename: str) -> str:
    """The base name as a person may see it: no control characters, no lone surrogates, not endless."""
    name = base_name(filename).encode("utf-8", "replace").decode()
    return "".join(letter for letter in name if letter.isprintable())[:_MAX_NAME].strip()


def _encoded(path: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidScript(f"the text of {path[:80]!r} holds half of a surrogate pair; send it as UTF-8") from None


def _chunked(data: bytes) -> Iterator[bytes]:
    return (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))
