"""Changes of files in a sandbox over a WebSocket of the real server."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from control.api.sandbox_calls import LiveSandbox

pytestmark = pytest.mark.process


async def changes(connection: ClientConnection, until: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages up to this one."""
    seen: list[dict[str, Any]] = []
    async with asyncio.timeout(30):
        while not seen or seen[-1] != until:
            seen.append(json.loads(await connection.recv()))
    return seen


async def error_of(connection: ClientConnection) -> dict[str, Any]:
    """Return the message that says why the server closes."""
    async with asyncio.timeout(30):
        while True:
            message: dict[str, Any] = json.loads(await connection.recv())
            if message["type"] == "error":
                return message


async def test_changes_below_a_folder_arrive_in_order(live: LiveSandbox) -> None:
    folder = live.box.folder / "watched ü"
    (folder / "below").mkdir(parents=True)
    async with live.websocket(f"/watch?path={quote(str(folder))}&recursive=true") as connection:
        assert json.loads(await connection.recv()) == {"type": "ready"}
        (folder / "below/a").write_text("x")
        seen = await changes(connection, {"type": "written", "path": "below/a"})
        assert seen[0] == {"type": "created", "path": "below/a"}
        (folder / "below/a").rename(folder / "b")
        assert await changes(connection, {"type": "moved_to", "path": "b"}) == [
            {"type": "moved_from", "path": "below/a"},
            {"type": "moved_to", "path": "b"},
        ]
        (folder / "b").unlink()
        await changes(connection, {"type": "removed", "path": "b"})
        await connection.send("hello")
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                last = json.loads(await connection.recv())
        assert last["code"] == "invalid_request"
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
    async with live.websocket(f"/watch?path={live.box.folder}") as connection:
        await connection.recv()
        (folder / "deep").write_text("x")  # not recursive
        (live.box.folder / "near").write_text("x")
        assert (await changes(connection, {"type": "created", "path": "near"}))[0]["path"] == "near"


async def test_what_cannot_be_watched_is_refused_before(live: LiveSandbox) -> None:
    (live.box.folder / "file").write_text("x")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as many:  # where thousands of folders cost little
        for number in range(4100):
            Path(many, str(number)).mkdir()
        for path, status, code in (
            (live.box.folder / "nothing", 404, "file_not_found"),
            (live.box.folder / "file", 409, "file_conflict"),
            (many, 422, "too_many_folders"),
        ):
            with pytest.raises(InvalidStatus) as refused:
                async with live.websocket(f"/watch?path={path}&recursive=true"):
                    pass
            answer = refused.value.response
            assert (answer.status_code, json.loads(answer.body or b"")["code"]) == (status, code)


async def test_a_watch_ends_with_its_folder_and_with_its_sandbox(live: LiveSandbox) -> None:
    (live.box.folder / "short").mkdir()
    async with live.websocket(f"/watch?path={live.box.folder}/short") as connection:
        await connection.recv()
        (live.box.folder / "short").rmdir()
        assert (await error_of(connection))["code"] == "file_not_found"
    async with live.websocket(f"/watch?path={live.box.folder}") as connection:
        await connection.recv()
        await live.box.http.delete(live.box.url)
        assert (await error_of(connection))["code"] in ("sandbox_ended", "stream_broken")
