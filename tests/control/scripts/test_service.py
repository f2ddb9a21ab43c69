"""The service over real blobs and packing; the store is a dictionary, as the database has tests of its own."""

from __future__ import annotations

import asyncio
import io
import shutil
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from belljar.control.blobs.store import Blobs, open_blobs
from belljar.control.scripts.service import ScriptService
from belljar.model.errors import DiskFull, InvalidScript, NotFound, TooLarge, UnknownLanguage
from belljar.model.image import Language
from belljar.model.script import Script
from belljar.settings import Settings

pytestmark = pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs erofs-utils")


class DictStore:
    def __init__(self) -> None:
        self.scripts: dict[tuple[str, str], Script] = {}

    async def add(self, script: Script, *, limits: object = None) -> Script:
        return self.scripts.setdefault((script.project, script.id), script)

    async def get(self, project: str, script_id: str) -> Script | None:
        return self.scripts.get((project, script_id))

    async def list(self, project: str, limit: int, cursor: str | None) -> tuple[list[Script], str | None]:
        return [script for (owner, _), script in self.scripts.items() if owner == project][:limit], None

    async def delete(self, project: str, script_id: str) -> bool | None:
        if self.scripts.pop((project, script_id), None) is None:
            return None
        return await self.used(script_id)

    async def used(self, script_id: str) -> bool:
        return any(known == script_id for _, known in self.scripts)


class Catalog:
    def __init__(self, languages: list[Language]) -> None:
        self._languages = languages

    def languages(self) -> list[Language]:
        return self._languages


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@pytest.fixture
def store() -> DictStore:
    return DictStore()


@pytest.fixture
def service(tmp_path: Path, store: DictStore, languages: list[Language]) -> ScriptService:
    settings = Settings(data_dir=tmp_path, max_upload_mb=1)
    return ScriptService(store, open_blobs(settings), Catalog(languages), settings)


def left_over(data_dir: Path) -> list[Path]:
    """Every file but the one that scripts are locked by, which is for all of them."""
    return [path for path in data_dir.rglob("*") if path.is_file() and path.name != "scripts.lock"]


async def test_an_upload_is_kept_and_found_again(service: ScriptService, tmp_path: Path) -> None:
    script = await service.upload("mine", stream(b"print", b"(1)"), "hello.py")
    assert (script.language, script.entrypoint, script.name, script.size_bytes) == ("python", "hello.py", "hello.py", 8)
    assert await service.get("mine", script.id) == script
    assert await service.list("mine") == ([script], None)
    assert await service.disks.path(script.id) == tmp_path / "blobs/scripts" / f"{script.id}.erofs"
    assert left_over(tmp_path) == [await service.disks.path(script.id)]
    assert script.public()["script_id"] == script.id


async def test_another_project_sees_nothing_of_it(service: ScriptService) -> None:
    script = await service.upload("mine", stream(b"x"), "hello.py")
    assert await service.list("other") == ([], None)
    with pytest.raises(NotFound):
        await service.get("other", script.id)
    with pytest.raises(NotFound):
        await service.delete("other", script.id)


async def test_the_same_content_is_packed_once(service: ScriptService, tmp_path: Path) -> None:
    first = await service.upload("mine", stream(b"x"), "hello.py")
    before = (await service.disks.path(first.id)).stat()
    again = await service.upload("mine", stream(b"x"), "hello.py")
    other = await service.upload("other", stream(b"x"), "hello.py")
    after = (await service.disks.path(first.id)).stat()
    assert again == first
    assert other.id == first.id
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


async def test_uploads_of_the_same_at_once_agree(service: ScriptService, tmp_path: Path) -> None:
    scripts = await asyncio.gather(*(service.upload("mine", stream(b"x" * 10_000), "hello.py") for _ in range(8)))
    assert len({script.id for script in scripts}) == 1
    assert left_over(tmp_path) == [await service.disks.path(scripts[0].id)]


async def test_a_disk_goes_with_its_last_owner(service: ScriptService, tmp_path: Path) -> None:
    script = await service.upload("mine", stream(b"x"), "hello.py")
    await service.upload("other", stream(b"x"), "hello.py")
    await service.delete("mine", script.id)
    assert (await service.disks.path(script.id)).exists()
    await service.delete("other", script.id)
    with pytest.raises(NotFound):
        await service.disks.path(script.id)
    assert left_over(tmp_path) == []


async def test_too_much_is_refused_and_nothing_stays(service: ScriptService, tmp_path: Path) -> None:
    with pytest.raises(TooLarge):
        await service.upload("mine", stream(*[bytes(100_000)] * 20), "hello.py")
    assert left_over(tmp_path) == []


async def test_an_interrupted_upload_leaves_nothing(service: ScriptService, store: DictStore, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    waiting = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield b"half"
        waiting.set()
        await asyncio.Event().wait()

    with pytest.raises(ConnectionResetError):
        await service.upload("mine", broken(), "hello.py")
    task = asyncio.create_task(service.upload("mine", stuck(), "hello.py"))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left_over(tmp_path) == []
    assert list((tmp_path / "run/uploads").iterdir()) == []
    assert store.scripts == {}


@pytest.mark.root
async def test_a_full_disk_leaves_nothing(small_disk: Path, store: DictStore, languages: list[Language]) -> None:
    settings = Settings(data_dir=small_disk)
    service = ScriptService(store, open_blobs(settings), Catalog(languages), settings)
    noise = bytes(range(1, 256))
    with pytest.raises(DiskFull):
        await service.upload("mine", stream(noise * 4000), "hello.py")
    with pytest.raises(DiskFull):
        await service.upload("mine", stream(noise * 500), "hello.py")  # received, but there is no room to unpack it
    assert left_over(small_disk) == []
    assert store.scripts == {}


async def test_an_archive_is_unpacked(service: ScriptService) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("tool.py", "1")
        archive.writestr("other.py", "2")
    script = await service.upload("mine", stream(out.getvalue()), "a.zip", entrypoint="tool.py")
    assert (script.name, script.entrypoint, script.file_count) == ("a.zip", "tool.py", 2)
    with pytest.raises(InvalidScript, match="entrypoint"):
        await service.upload("mine", stream(out.getvalue()), "a.zip")


async def test_files_and_code_are_scripts_too(service: ScriptService) -> None:
    several = await service.upload_files("mine", {"main.py": "import a", "a.py": ""})
    assert (several.entrypoint, several.file_count, several.name) == ("main.py", 2, "main.py")
    code = await service.upload_code("mine", "print(1)", "python")
    same = await service.upload_files("mine", {"main.py": "print(1)"})
    assert (code.language, code.entrypoint) == ("python", "main.py")
    assert code.id == same.id


@pytest.mark.parametrize(
    "files", [{}, {"main.py": ""}, {"../main.py": "x"}, {"a": "x", "a/b": "y"}, {"main.py": "\ud800"}, {"": "x"}]
)
async def test_bad_files_are_refused(service: ScriptService, tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(InvalidScript):
        await service.upload_files("mine", files)
    assert left_over(tmp_path) == []


async def test_code_in_an_unknown_language_is_refused(service: ScriptService) -> None:
    with pytest.raises(UnknownLanguage):
        await service.upload_code("mine", "x", "cobol")
    with pytest.raises(TooLarge):
        await service.upload_code("mine", "x" * 1_100_000, "python")


@pytest.mark.parametrize("script_id", ["", "../../etc/passwd", "f" * 64, "F" * 64, "\0"])
async def test_a_disk_of_no_script_is_not_found(service: ScriptService, script_id: str) -> None:
    with pytest.raises(NotFound):
        await service.disks.path(script_id)


async def test_a_disk_in_an_object_store_is_fetched_once(
    tmp_path: Path, store: DictStore, languages: list[Language]
) -> None:
    blobs = Blobs(MemoryStore())
    service = ScriptService(store, blobs, Catalog(languages), Settings(data_dir=tmp_path))
    script = await service.upload("mine", stream(b"x" * 300_000), "hello.py")
    disks = await asyncio.gather(*(service.disks.path(script.id) for _ in range(4)))
    assert len(set(disks)) == 1
    assert disks[0].read_bytes() == await blobs.get_bytes(f"scripts/{script.id}.erofs")
    assert left_over(tmp_path) == [disks[0]]
    with pytest.raises(NotFound):
        await service.disks.path("f" * 64)
    assert left_over(tmp_path) == [disks[0]]
