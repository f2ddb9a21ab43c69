"""The SDK's sandboxes against the real application and agent: commands, processes, files, ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from belljar.client import AsyncClient, CommandFailed, Conflict, LocalPathRefused, NotFound

pytestmark = pytest.mark.process


async def test_a_sandbox_runs_commands_and_is_deleted_at_the_end(client: AsyncClient) -> None:
    async with client.sandbox("python", env={"A": "1"}, labels={"a": "b"}) as box:
        assert box.status == "running"
        result = await box.run('cat; echo "$A" >&2; exit 3', stdin="ü")
        assert (result.exit_code, result.stdout, result.stderr, result.timed_out) == (3, "ü", "1\n", False)
        with pytest.raises(CommandFailed, match="exit code 3\n\nstderr:\n1"):
            result.check()
        raw = bytes(range(256))
        assert (await box.exec(["cat"], stdin=raw)).check().stdout_bytes == raw
        cut = await box.run("head -c 100000 /dev/zero", max_output_bytes=10)
        assert (cut.stdout_bytes, cut.stdout_truncated, cut.stderr_truncated) == (bytes(10), True, False)
        late = await box.run("sleep 60", timeout_seconds=0.2)
        assert late.timed_out and late.signal == "SIGKILL"
        with pytest.raises(TypeError, match="use a list"):
            await box.exec("true")
        (listed,) = (await client.sandboxes(label="a=b"))["sandboxes"]
        assert listed["id"] == box.id == (await client.get_sandbox(box.id)).id
    assert box.status == "ended"
    with pytest.raises(Conflict) as ended:
        await box.run("true")
    assert ended.value.code == "sandbox_ended"


async def test_a_background_process_takes_input_and_signals_and_keeps_its_exit(client: AsyncClient) -> None:
    async with client.sandbox() as box:
        process = await box.start("read line; echo got $line; read other", keep_stdin_open=True)
        assert not process.is_ended
        await process.write("this\n")
        await process.close_stdin()
        assert (await process.wait(30)).exit_code == 1
        assert [(piece.stream, piece.text, piece.offset) async for piece in process.output()] == [
            ("stdout", "got this\n", 0)
        ]
        sleeping = await box.start(["sleep", "60"])
        assert not (await sleeping.wait(0.1)).is_ended
        await sleeping.signal("INT")
        assert (await sleeping.wait(30))["signal"] == "SIGINT"
        assert {each.pid for each in await box.processes()} == {process.pid, sleeping.pid}
        await sleeping.forget()
        with pytest.raises(NotFound):
            await box.process(sleeping.pid)


async def test_files_go_there_and_back(client: AsyncClient, folder: Path, tmp_path: Path) -> None:
    async with client.sandbox() as box:
        base = str(folder)
        entry = await box.files.write(f"{base}/new/a ü?#%.txt", "text", mode="600")
        assert entry["size_bytes"] == 4 and (folder / "new/a ü?#%.txt").stat().st_mode & 0o777 == 0o600
        assert await box.files.read_text(f"{base}/new/a ü?#%.txt") == "text"
        assert await box.files.exists(f"{base}/new") and not await box.files.exists(f"{base}/old")
        await box.files.move(f"{base}/new", f"{base}/old")
        assert [each["path"] for each in await box.files.list(f"{base}/old")] == ["a ü?#%.txt"]
        await box.files.remove(f"{base}/old", recursive=True)
        with pytest.raises(NotFound) as missing:
            await box.files.read(f"{base}/old")
        assert missing.value.code == "file_not_found"
        source = tmp_path / "source"
        (source / "deep").mkdir(parents=True)
        (source / "deep/data").write_bytes(bytes(1 << 20))
        (source / "link").symlink_to("/etc/hostname")
        await box.files.upload(source, f"{base}/copy")
        assert (folder / "copy/deep/data").stat().st_size == 1 << 20
        assert await box.files.download(f"{base}/copy", tmp_path / "back") == ["link"]
        assert (tmp_path / "back/deep/data").read_bytes() == bytes(1 << 20)
        assert not (tmp_path / "back/link").is_symlink()


async def test_a_download_is_bounded_and_leaves_nothing(client: AsyncClient, folder: Path, tmp_path: Path) -> None:
    (folder / "large").mkdir()
    (folder / "large/file").write_bytes(bytes(300_000))
    async with client.sandbox() as box:
        for path in ("large/file", "large"):
            with pytest.raises(LocalPathRefused, match="max_bytes"):
                await box.files.download(str(folder / path), tmp_path / "new/here", max_bytes=100_000)
        assert not (tmp_path / "new").exists()
        assert await box.files.download(str(folder / "large/file"), tmp_path / "here", max_bytes=300_000) == []
    assert (tmp_path / "here").stat().st_size == 300_000


async def test_dots_in_a_path_reach_the_sandbox_and_no_other_route(client: AsyncClient, folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "b").write_text("b")
    async with client.sandbox() as box:
        assert await box.files.read(f"{folder}/a/../b") == b"b"
        with pytest.raises(NotFound) as missing:
            await box.files.read("../../../../no-such-file")
        assert missing.value.code == "file_not_found"


async def test_a_broken_body_deletes_its_sandbox(client: AsyncClient) -> None:
    with pytest.raises(LookupError):
        async with client.sandbox() as box:
            raise LookupError
    assert (await box.refresh()).status == "ended"


async def test_an_interrupted_command_is_killed(client: AsyncClient) -> None:
    async with client.sandbox() as box:
        process = await box.start(["sleep", "60"])
        await process.kill()
        assert (await process.wait(30))["signal"] == "SIGKILL"
        before = box["expires_at"]
        assert (await box.extend(5000))["expires_at"] != before
        assert (await box.metrics())["processes"] >= 0
        assert await asyncio.wait_for(box.ports(), 30) is not None
        assert box.url(80).endswith(f"/v1/sandboxes/{box.id}/ports/80/")
