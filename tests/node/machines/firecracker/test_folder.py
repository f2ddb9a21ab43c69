"""A machine's folder: what is shown in it, what a hostile process may do to it, and what is removed of dead owners'."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from belljar.model.errors import DiskFull, HostError
from belljar.node.machines.firecracker.folder import clear_folders, machine_folder
from belljar.node.machines.firecracker.stream import NotListening, opened_socket
from belljar.node.machines.host.owner import owner_name


async def test_it_is_gone_with_all_that_is_in_it(tmp_path: Path) -> None:
    async with machine_folder(tmp_path / "jails", "firecracker", "a-machine", None) as folder:
        folder.write("config.json", b"{}")
        (folder.path / "dev").mkdir()
        assert (folder.path / "config.json").read_bytes() == b"{}"
    assert list((tmp_path / "jails").glob("*/*")) == []


async def test_two_machines_never_have_the_same(tmp_path: Path) -> None:
    async with machine_folder(tmp_path, "firecracker", "a-machine", None):
        with pytest.raises(HostError):
            async with machine_folder(tmp_path, "firecracker", "a-machine", None):
                pass


@pytest.mark.root
async def test_what_root_owns_is_linked_and_what_others_may_write_is_not(tmp_path: Path) -> None:
    safe, loose, private = tmp_path / "safe", tmp_path / "loose", tmp_path / "private"
    for path, mode in ((safe, 0o444), (loose, 0o666), (private, 0o600)):
        path.write_bytes(b"x")
        path.chmod(mode)
    async with machine_folder(tmp_path / "jails", "firecracker", "a-machine", 2_000_500) as folder:
        for path in (safe, loose, private):
            folder.show(path.name, path)
        assert os.path.samefile(folder.path / "safe", safe)
        assert folder.bound == {"loose": loose}  # mounted, read-only
        copy = (folder.path / "private").stat()
        assert (copy.st_uid, copy.st_mode & 0o777) == (2_000_500, 0o400)
        assert not os.path.samefile(folder.path / "private", private)


async def test_an_ordinary_users_files_are_mounted_since_the_process_could_change_them(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    async with machine_folder(tmp_path / "jails", "firecracker", "a-machine", None) as folder:
        folder.show("file", file)
        assert folder.bound == {"file": file} and not (folder.path / "file").exists()


async def test_a_link_in_a_sockets_place_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(other))
        async with machine_folder(tmp_path / "jails", "firecracker", "a-machine", None) as folder:
            (folder.path / "vsock.sock").symlink_to(other)
            with pytest.raises(HostError, match="unexpected file type"), opened_socket(folder.descriptor, "vsock.sock"):
                pass
            (folder.path / "api.sock").write_text("no socket")
            with pytest.raises(HostError, match="unexpected file type"), opened_socket(folder.descriptor, "api.sock"):
                pass
            with pytest.raises(NotListening), opened_socket(folder.descriptor, "absent.sock"):
                pass


async def test_a_socket_is_reached_however_long_its_path_is(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    async with machine_folder(deep, "firecracker", "a-machine", None) as folder:
        subprocess.run(
            ["python3", "-c", "import socket; s = socket.socket(1); s.bind('v.sock')"], cwd=folder.path, check=True
        )
        with opened_socket(folder.descriptor, "v.sock") as path:
            assert len(str(path)) < 100 < len(str(folder.path))


async def test_what_is_no_plain_file_any_more_is_not_kept(tmp_path: Path) -> None:
    async with machine_folder(tmp_path / "jails", "firecracker", "a-machine", None) as folder:
        folder.write("state", b"x")
        folder.check_own("state")
        (folder.path / "memory").symlink_to("/etc/passwd")
        with pytest.raises(HostError, match="unexpected file type"):
            folder.check_own("state", "memory")


@pytest.mark.root
async def test_a_full_disk_is_that_error(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=True)
    try:
        async with machine_folder(place, "firecracker", "a-machine", None) as folder:
            with pytest.raises(DiskFull, match=f"in {folder.path}: no room left"):
                folder.write("config.json", bytes(1 << 20))
    finally:
        subprocess.run(["umount", place], check=True)


def test_folders_of_dead_owners_are_removed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    owner = owner_name(process.pid)
    process.kill()
    process.wait()
    mine = tmp_path / "firecracker" / f"{owner_name(os.getpid())}-0123456789ab"
    dead = tmp_path / "firecracker" / f"{owner}-0123456789ab"
    odd = tmp_path / "firecracker" / "something"
    for folder in (mine, dead, odd):
        (folder / "root" / "dev").mkdir(parents=True)
    assert clear_folders(tmp_path) == 1
    assert sorted(path.name for path in (tmp_path / "firecracker").iterdir()) == sorted([mine.name, odd.name])
    assert clear_folders(tmp_path / "absent") == 0


@pytest.mark.root
def test_what_still_runs_in_a_dead_owners_folder_is_ended(tmp_path: Path) -> None:
    owner_process = subprocess.Popen(["sleep", "60"])
    owner = owner_name(owner_process.pid)
    root = tmp_path / "firecracker" / f"{owner}-0123456789ab" / "root"
    root.mkdir(parents=True)
    script = f"import os, time; os.chroot({str(root)!r}); os.chdir('/'); print('in', flush=True); time.sleep(60)"
    inhabitant = subprocess.Popen(["python3", "-c", script], stdout=subprocess.PIPE)
    assert inhabitant.stdout is not None and inhabitant.stdout.readline() == b"in\n"
    assert clear_folders(tmp_path) == 0  # its owner lives
    owner_process.kill()
    owner_process.wait()
    assert clear_folders(tmp_path) == 1
    assert inhabitant.wait(10) == -9
    assert not root.exists()


def test_a_link_in_a_roots_place_kills_no_process(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    owner = owner_name(process.pid)
    process.kill()
    process.wait()
    place = tmp_path / "firecracker" / f"{owner}-0123456789ab"
    place.mkdir(parents=True)
    (place / "root").symlink_to("/")
    assert clear_folders(tmp_path) == 1  # and this process is still there to say so
    assert Path("/").exists() and not place.exists()
