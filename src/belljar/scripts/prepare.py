"""Turn an uploaded file, archive or folder into a script's disk image, without a server.

The steps: detect what the source is, extract it into a tree, choose the language and the entrypoint, check the links,
read the declared packages, compute the id from the content, pack the tree.
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
    """What the caller declares about an upload; a value of None is detected."""

    filename: str
    language: str | None = None
    entrypoint: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class UnpackedScript:
    """A checked script with its id; its files are in the folder `tree`."""

    id: str
    name: str
    language: str
    entrypoint: str
    size_bytes: int
    file_count: int
    dependencies: Dependencies | None
    tree: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedScript:
    """A script and the filesystem image `disk` with its files."""

    script: UnpackedScript
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
) -> PreparedScript:
    """Prepare a script from a file, an archive or a folder; `selection` chooses the files of a folder.

    The disk is written into `work`, an empty folder (an absolute path) that the caller removes.

    Raises InvalidScript, UnknownLanguage, TooLarge, DiskFull, MissingTool.
    """
    hints = UploadHints(filename=filename, language=language, entrypoint=entrypoint)
    script = await unpack_source(source, hints, languages=languages, limits=limits, work=work, selection=selection)
    disk = work / "script.erofs"
    await pack_tree(script.tree, disk)
    return PreparedScript(script=script, disk=disk)


async def unpack_source(
    source: Path,
    hints: UploadHints,
    *,
    languages: Sequence[Language],
    limits: UploadLimits,
    work: Path,
    selection: Selection | None = None,
) -> UnpackedScript:
    """Do every step but packing; the tree is in `work`.

    Raises InvalidScript, UnknownLanguage, TooLarge, DiskFull.
    """
    upload_bytes = await in_thread(partial(_upload_bytes, source))
    budget = ExtractionBudget(limits, upload_bytes)

    def steps() -> UnpackedScript:
        if upload_bytes is None:
            return _unpack_folder(source, hints, languages, budget, work, selection)
        if upload_bytes == 0:
            raise InvalidScript("the script is empty (0 bytes); upload a file with content")
        if upload_bytes > limits.max_upload_bytes:
            raise too_large(limits.max_upload_bytes)
        return _unpack_file(source, hints, languages, budget, work)

    return await _run_steps(steps, budget, work)


async def unpack_files(
    files: Mapping[str, str], hints: UploadHints, *, languages: Sequence[Language], limits: UploadLimits, work: Path
) -> UnpackedScript:
    """Do the same for `files`, path → text. Raises InvalidScript, UnknownLanguage, TooLarge, DiskFull."""
    budget = ExtractionBudget(limits)

    def steps() -> UnpackedScript:
        tree = _new_tree(work, budget)
        total = 0
        for path, text in files.items():
            data = _encoded(path, text)
            total += len(data)
            if total > limits.max_upload_bytes:
                raise too_large(limits.max_upload_bytes)
            tree.add_file(path, _chunked(data), executable=data.startswith(b"#!"))
        if files and total == 0:
            raise InvalidScript("the script is empty (0 bytes); add content to its files")
        return _finish_tree(tree, hints, languages)

    return await _run_steps(steps, budget, work)


async def _run_steps(steps: Callable[[], UnpackedScript], budget: ExtractionBudget, work: Path) -> UnpackedScript:
    """Run blocking steps in a thread; cancelling stops them at their next check of the budget."""

    def run() -> UnpackedScript:
        try:
            with disk_full_errors(f"unpack the script in {work}"):
                return steps()
        except PermissionError as error:
            raise InvalidScript(
                f"cannot read {error.filename}; make it readable for the user that runs belljar"
            ) from error

    return await in_thread(run, stop=budget.stop.set)


# --- the steps: they block, and run in a thread ---------------------------------------------------------------------


def _upload_bytes(source: Path) -> int | None:
    """Return the length of a file, None for a folder. Raises InvalidScript for a path that cannot be read."""
    try:
        status = source.stat()
        if stat.S_ISREG(status.st_mode):
            source.open("rb").close()  # reports missing permission before any work is done
    except OSError as error:
        raise InvalidScript(f"cannot read {source}: {error.strerror}; give a file, an archive or a folder") from None
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise InvalidScript(f"{source} is a device, pipe or socket; give a file, an archive or a folder")
    return status.st_size


def _unpack_file(
    source: Path, hints: UploadHints, languages: Sequence[Language], budget: ExtractionBudget, work: Path
) -> UnpackedScript:
    with source.open("rb") as file:
        head = file.read(max(HEAD_BYTES, ARCHIVE_HEAD_BYTES))
    kind = archive_kind(head, hints.filename)
    tree = _new_tree(work, budget)
    if kind is None:
        return _add_single_file(source, head, tree, hints, languages)
    unpack(source, kind, tree, budget, decompressed=work / "plain.tar")
    return _finish_tree(tree, hints, languages)


def _unpack_folder(
    source: Path,
    hints: UploadHints,
    languages: Sequence[Language],
    budget: ExtractionBudget,
    work: Path,
    selection: Selection | None,
) -> UnpackedScript:
    tree = _new_tree(work, budget)
    copy_folder(source, tree, selection)
    return _finish_tree(tree, hints, languages)


def _add_single_file(
    source: Path, head: bytes, tree: Tree, hints: UploadHints, languages: Sequence[Language]
) -> UnpackedScript:
    if hints.language is not None:
        language = named_language(hints.language, languages)
    else:
        language = detect_language(hints.filename, head, languages)
    check_content(base_name(hints.filename), head, language)
    name = file_name(hints.filename, language)
    if hints.entrypoint is not None and hints.entrypoint not in (name, base_name(hints.filename)):
        raise InvalidScript(
            f"the upload is a single file, {name}, not {hints.entrypoint[:80]!r}; "
            "omit `entrypoint`, which is for archives"
        )
    with source.open("rb") as file:
        tree.add_file(name, iter(lambda: file.read(CHUNK_BYTES), b""), executable=head.startswith((b"#!", ELF)))
    return _describe(tree, hints, language, name)


def _finish_tree(tree: Tree, hints: UploadHints, languages: Sequence[Language]) -> UnpackedScript:
    if not tree.files:
        raise InvalidScript("the script has no files; add the file to run")
    language, path = choose_entrypoint(tree, languages, language=hints.language, entrypoint=hints.entrypoint)
    tree.create_links()
    return _describe(tree, hints, language, path)


def _describe(tree: Tree, hints: UploadHints, language: Language, entrypoint: str) -> UnpackedScript:
    return UnpackedScript(
        id=tree.digest(language.name, entrypoint),
        name=_printable_name(hints.filename) or entrypoint,
        language=language.name,
        entrypoint=entrypoint,
        size_bytes=tree.size_bytes,
        file_count=len(tree.files),
        dependencies=read_dependencies(tree, language.name, entrypoint),
        tree=tree.root,
    )


def _new_tree(work: Path, budget: ExtractionBudget) -> Tree:
    root = work / "tree"
    root.mkdir()
    return Tree(root, budget)


def _printable_name(filename: str) -> str:
    """Return the base name without control characters and lone surrogates, at most 255 characters."""
    name = base_name(filename).encode("utf-8", "replace").decode()
    return "".join(character for character in name if character.isprintable())[:_MAX_NAME].strip()


def _encoded(path: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidScript(f"the text of {path[:80]!r} contains a lone surrogate; send it as UTF-8") from None


def _chunked(data: bytes) -> Iterator[bytes]:
    return (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))
