"""The store of frozen machines: what is written comes back or is refused, and only what is needed stays."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belljar.model.errors import DiskFull
from belljar.model.ids import new_id
from belljar.model.sandbox_errors import SnapshotUnusable
from belljar.node.frozen.manifest import PIECE_BYTES, Manifest, Part, Piece, parse_manifest
from belljar.node.frozen.parts import BytesPart, FilePart
from belljar.node.frozen.store import FrozenStore

#: A part as a list of pieces, each filled with one byte; the last may be shorter.
CONTENTS = st.lists(st.integers(0, 3), max_size=8)


def contents(pieces: list[int], tail: int = 0) -> bytes:
    return b"".join(bytes([each]) * PIECE_BYTES for each in pieces) + b"t" * tail


def read(store: FrozenStore, manifest: Manifest, name: str) -> bytes:
    """A part by both ways of reading, which agree."""
    descriptor = os.memfd_create("part")
    try:
        store.copy_part("mine", manifest, name, descriptor)
        copied = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)
    assert store.read_part("mine", manifest, name) == copied
    return copied


class Memory(BytesPart):
    """A part that knows which of its pieces changed since `before`."""

    def __init__(self, name: str, data: bytes, before: bytes) -> None:
        super().__init__(name, data)
        self._before = before

    def pieces(self, *, changed_only: bool) -> Iterator[tuple[int, bytes | None]]:
        for index, data in super().pieces(changed_only=changed_only):
            old = self._before[index * PIECE_BYTES : (index + 1) * PIECE_BYTES]
            yield index, None if changed_only and data == old else data


@given(CONTENTS, st.lists(CONTENTS, min_size=1, max_size=4), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_chain_of_freezings_comes_back_and_stores_only_what_changed(
    tmp_path_factory: pytest.TempPathFactory, first: list[int], later: list[list[int]], tail: int
) -> None:
    store = FrozenStore(tmp_path_factory.mktemp("frozen"))
    before, base = contents(first, tail), None
    base = store.write("mine", new_id("snap"), {}, [BytesPart("memory", before)])
    assert read(store, base, "memory") == before
    for each in later:
        data = contents(each, tail)
        manifest = store.write("mine", new_id("snap"), {}, [Memory("memory", data, before)], base)
        assert read(store, manifest, "memory") == data
        assert store.open("mine", manifest.id) == manifest
        old = {piece.sha256 for piece in base.parts["memory"].pieces.values()}
        if len(data) == len(before):
            moved = [
                index
                for index, piece in manifest.parts["memory"].pieces.items()
                if piece.pack == manifest.id and base.parts["memory"].pieces.get(index) == piece
            ]
            assert not moved
            if data == before:
                assert manifest.packs() <= base.packs()
        assert old is not None
        before, base = data, manifest


def test_zeros_and_holes_are_not_stored(tmp_path: Path) -> None:
    store, file = FrozenStore(tmp_path / "frozen"), (tmp_path / "disk").open("w+b")
    with file:
        file.truncate(100 << 20)
        file.seek(50 << 20)
        file.write(b"x" * 100)
        file.flush()
        manifest = store.write("mine", new_id("snap"), {}, [FilePart("disk", file.fileno()), BytesPart("none", b"")])
        assert manifest.stored_bytes() == PIECE_BYTES
        descriptor = os.memfd_create("copy")
        store.copy_part("mine", manifest, "disk", descriptor)
        assert os.fstat(descriptor).st_size == 100 << 20 and os.fstat(descriptor).st_blocks * 512 <= PIECE_BYTES
        assert os.pread(descriptor, 102, (50 << 20) - 1) == b"\0" + b"x" * 100 + b"\0"
        os.close(descriptor)
    assert read(store, manifest, "none") == b""


def test_the_files_are_private(tmp_path: Path) -> None:
    store = FrozenStore(tmp_path / "frozen")
    store.write("mine", new_id("snap"), {}, [BytesPart("memory", b"secret")])
    for path in (tmp_path / "frozen").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize("change", ["alter", "truncate", "remove"])
def test_a_piece_that_is_not_what_was_written_is_refused(tmp_path: Path, change: str) -> None:
    store = FrozenStore(tmp_path / "frozen")
    data = contents([1, 2, 3])
    manifest = store.write("mine", new_id("snap"), {}, [BytesPart("memory", data)])
    (pack,) = (tmp_path / "frozen").rglob("*.pack")
    if change == "remove":
        pack.unlink()
    else:
        written = pack.read_bytes()
        pack.write_bytes(written[:-1] if change == "truncate" else written[:-1] + b"?")
    with pytest.raises(SnapshotUnusable, match=manifest.id):
        read(store, manifest, "memory")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_manifest_that_was_altered_or_cut_off_is_refused(data: st.DataObject) -> None:
    piece = Piece(new_id("snap"), 7, b"h" * 32)
    manifest = Manifest(
        id=new_id("snap"), about={"a": 1}, parts={"memory": Part(size=3 * PIECE_BYTES, pieces={2: piece})}
    )
    encoded = manifest.encode()
    assert parse_manifest(encoded) == manifest
    at = data.draw(st.integers(0, len(encoded) - 1))
    altered = bytearray(encoded)
    altered[at] ^= data.draw(st.integers(1, 255))
    for bad in (bytes(altered), encoded[:at]):
        with pytest.raises(SnapshotUnusable):
            parse_manifest(bad)


def test_ids_are_never_paths(tmp_path: Path) -> None:
    store = FrozenStore(tmp_path / "frozen")
    for bad in ("../../etc/passwd", "snap_01", "", "snap_" + "0" * 25 + "/"):
        with pytest.raises(SnapshotUnusable):
            store.open("mine", bad)
    with pytest.raises(SnapshotUnusable, match="not on this node"):
        store.open("mine", new_id("snap"))


def test_another_project_does_not_find_it(tmp_path: Path) -> None:
    store = FrozenStore(tmp_path / "frozen")
    manifest = store.write("mine", new_id("snap"), {}, [BytesPart("memory", b"secret")])
    with pytest.raises(SnapshotUnusable):
        store.open("other", manifest.id)


def test_removed_ones_leave_nothing_but_what_others_need(tmp_path: Path) -> None:
    store, folder = FrozenStore(tmp_path / "frozen"), tmp_path / "frozen"
    first = store.write("mine", new_id("snap"), {}, [BytesPart("memory", contents([1, 2]))])
    second = store.write("mine", new_id("snap"), {}, [BytesPart("memory", contents([1, 3]))], first)
    assert set(store.ids()) == {first.id, second.id} and store.ids(60) == []
    store.remove([first.id])
    assert read(store, second, "memory") == contents([1, 3])
    third = store.write("mine", new_id("snap"), {}, [BytesPart("memory", contents([4, 3]))], second)
    store.remove([second.id])
    assert {path.stem for path in folder.rglob("*.pack")} == {second.id, third.id}  # nothing of the first is needed
    assert read(store, third, "memory") == contents([4, 3])
    store.remove([third.id])
    assert not folder.exists() or list(folder.iterdir()) == []


def test_what_a_killed_process_leaves_is_removed(tmp_path: Path) -> None:
    store = FrozenStore(tmp_path / "frozen")
    manifest = store.write("mine", new_id("snap"), {}, [BytesPart("memory", b"kept")])
    (folder,) = (tmp_path / "frozen").iterdir()
    (folder / f"{new_id('snap')}.pack").write_bytes(b"half")
    (folder / f".{new_id('snap')}.manifest.0badcafe.part").write_bytes(b"half")
    FrozenStore(tmp_path / "frozen").sweep()
    assert {path.name for path in folder.iterdir()} == {f"{manifest.id}.pack", f"{manifest.id}.manifest"}


def test_a_sweep_leaves_what_is_being_written(tmp_path: Path) -> None:
    store = FrozenStore(tmp_path / "frozen")
    base = store.write("mine", new_id("snap"), {}, [BytesPart("memory", contents([1, 2]))])
    reached, go_on = threading.Event(), threading.Event()

    class Slow(BytesPart):
        def pieces(self, *, changed_only: bool) -> Iterator[tuple[int, bytes | None]]:
            yield 0, None
            reached.set()
            assert go_on.wait(10)
            yield 1, contents([3])

    done: list[Manifest] = []
    thread = threading.Thread(
        target=lambda: done.append(store.write("mine", new_id("snap"), {}, [Slow("memory", contents([1, 3]))], base))
    )
    thread.start()
    assert reached.wait(10)
    store.remove([base.id])
    go_on.set()
    thread.join(10)
    assert read(store, done[0], "memory") == contents([1, 3])


def test_a_failure_and_a_stop_leave_nothing(tmp_path: Path) -> None:
    store, folder = FrozenStore(tmp_path / "frozen"), tmp_path / "frozen"

    class Full(BytesPart):
        def pieces(self, *, changed_only: bool) -> Iterator[tuple[int, bytes | None]]:
            yield 0, b"x" * PIECE_BYTES
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFull):
        store.write("mine", new_id("snap"), {}, [Full("memory", contents([1, 1]))])
    with pytest.raises(InterruptedError):
        store.write("mine", new_id("snap"), {}, [BytesPart("memory", contents([1]))], is_stopped=lambda: True)
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_packs_with_much_waste_are_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("belljar.node.frozen.store._WASTE_BYTES", 0)
    store = FrozenStore(tmp_path / "frozen")
    data = contents([1, 2, 3, 1, 2, 3])
    manifest = store.write("mine", new_id("snap"), {}, [BytesPart("memory", data)])
    for number in range(4, 60):  # each one replaces a piece, so the packs grow and the contents do not
        before, data = data, contents([1, 2, number, 1, 2, 3])
        manifest = store.write("mine", new_id("snap"), {}, [Memory("memory", data, before)], manifest)
        store.remove(set(store.ids()) - {manifest.id})
        assert read(store, manifest, "memory") == data
        size = sum(path.stat().st_size for path in (tmp_path / "frozen").rglob("*.pack"))
        assert size <= 2 * manifest.stored_bytes() + 2 * PIECE_BYTES


def test_what_is_not_reported_yet_is_not_offered_for_removal(tmp_path: Path) -> None:
    store = FrozenStore(tmp_path / "frozen")
    kept, other = (store.write("mine", new_id("snap"), {}, [BytesPart("memory", b"kept")]) for _ in range(2))
    with store.unreported(kept.id):
        assert store.ids() == [other.id]
    assert set(store.ids()) == {kept.id, other.id}


def test_nothing_is_swept_while_a_manifest_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FrozenStore(tmp_path / "frozen")
    first = store.write("mine", new_id("snap"), {}, [BytesPart("memory", contents([1, 2]))])
    second = store.write("mine", new_id("snap"), {}, [BytesPart("memory", contents([1, 3]))], first)
    with monkeypatch.context() as patch:

        def refuse(_: Path) -> bytes:
            raise OSError(errno.EMFILE, "Too many open files")

        patch.setattr(Path, "read_bytes", refuse)
        store.remove([first.id])
    assert read(store, second, "memory") == contents([1, 3])
