"""The data folder: where everything in it lies, which process works on it, and that it is private to its user.

Jobs' environments, scripts, keys' digests and logs lie in it, so no other user of this host may enter it, from its
first moment and whatever the umask is. Machines that run as users of their own need no way in: they are given
descriptors, or files in a root of their own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from belljar.model.errors import BelljarError, DataFolderError, DiskFull, is_disk_full
from belljar.system.file_locks import try_flock, try_lock

#: Longer than another process holds a lock only to see whether it is free (`is_served`).
_LOCK_WAIT_SECONDS = 0.1
#: The locks that this process holds.
_held: set[Path] = set()


@dataclass(frozen=True, slots=True)
class DataDir:
    """The places in a data folder. No other module joins a name to the folder's path."""

    root: Path

    @property
    def settings_file(self) -> Path:
        """Settings of this data folder."""
        return self.root / "belljar.toml"

    @property
    def admin_key(self) -> Path:
        """The first API key, for commands on this host."""
        return self.root / "admin.key"

    @property
    def database(self) -> Path:
        """Jobs, scripts, keys and nodes (SQLite); backups of it lie beside it."""
        return self.root / "belljar.db"

    @property
    def secrets_key(self) -> Path:
        """The key that secrets in the database are sealed with, unless the settings name another."""
        return self.root / "secrets.key"

    @property
    def audit_heads(self) -> Path:
        """The newest hashes of the audit log at intervals."""
        return self.root / "audit.heads"

    @property
    def tls(self) -> Path:
        """The local authority of `--tls generate`, and the server's certificate."""
        return self.root / "tls"

    @property
    def blobs(self) -> Path:
        """Packed scripts, standard input, logs and artifacts, unless `blobs_url` names another store."""
        return self.root / "blobs"

    @property
    def images(self) -> Path:
        """Images that machines boot: manifests by name, and their parts by digest."""
        return self.root / "images"

    @property
    def recipes(self) -> Path:
        """The user's own recipes of images."""
        return self.root / "recipes"

    @property
    def layers(self) -> Path:
        """Installed packages that scripts require."""
        return self.root / "layers"

    @property
    def snapshots(self) -> Path:
        """Frozen machines, from which others are cloned."""
        return self.root / "snapshots"

    @property
    def frozen(self) -> Path:
        """Frozen machines of paused sandboxes and of sandboxes' snapshots."""
        return self.root / "frozen"

    @property
    def cache(self) -> Path:
        """What can be made or fetched again."""
        return self.root / "cache"

    @property
    def apt_cache(self) -> Path:
        """Debian packages that image builds downloaded."""
        return self.cache / "apt"

    @property
    def build_logs(self) -> Path:
        """Logs of builds of images and layers."""
        return self.cache / "logs"

    @property
    def build_notes(self) -> Path:
        """What earlier image builds made of the same inputs."""
        return self.cache / "notes"

    @property
    def build_lock(self) -> Path:
        """Locked while an image is built, and while images are deleted."""
        return self.cache / "build.lock"

    @property
    def digest_cache(self) -> Path:
        """The digests that files of images were last found to have."""
        return self.cache / "digests"

    @property
    def script_cache(self) -> Path:
        """Copies of packed scripts from an object store."""
        return self.cache / "scripts"

    @property
    def warm_up_cache(self) -> Path:
        """Disks with the scripts that warm a machine up before it is frozen."""
        return self.cache / "rehearsals"

    @property
    def deadline_uses(self) -> Path:
        """How much of each deadline machines used at most."""
        return self.cache / "deadlines.json"

    def hypervisor_choice(self, kernel_sha256: str) -> Path:
        """Return the file with the hypervisor chosen for a kernel."""
        return self.cache / f"hypervisor-{kernel_sha256[:16]}.json"

    @property
    def run(self) -> Path:
        """Files of running processes; the server locks the folder itself."""
        return self.root / "run"

    @property
    def server_address(self) -> Path:
        """The address of the running server."""
        return self.run / "server.json"

    @property
    def worker_name(self) -> Path:
        """This node's name; locked by its worker."""
        return self.run / "worker"

    @property
    def script_locks(self) -> Path:
        """Locked, a byte for each script, while the script is stored or deleted."""
        return self.run / "scripts.lock"

    @property
    def maintenance_lock(self) -> Path:
        """Locked while maintenance runs."""
        return self.run / "maintenance.lock"

    @property
    def logs(self) -> Path:
        """Logs of running jobs, until they become blobs."""
        return self.run / "logs"

    @property
    def outcomes(self) -> Path:
        """Outcomes of attempts that the database may not have yet (the journal)."""
        return self.run / "outcomes"

    @property
    def artifacts(self) -> Path:
        """Artifacts on their way from a machine to the blobs."""
        return self.run / "artifacts"

    @property
    def uploads(self) -> Path:
        """Uploads while they are received and unpacked."""
        return self.run / "uploads"

    @property
    def local_runs(self) -> Path:
        """Work folders of runs without a server."""
        return self.run / "embedded"

    @property
    def scratch(self) -> Path:
        """Scratch disks of machines under QEMU."""
        return self.run / "scratch"

    @property
    def jails(self) -> Path:
        """Root folders of machines under Firecracker."""
        return self.run / "jails"


def private_folder(path: Path) -> Path:
    """Make a folder, and those above it that are missing, for this user alone. An existing one is left as it is.

    Raises DataFolderError, DiskFull.
    """
    missing: list[Path] = []
    try:
        for each in (path, *path.parents):
            if each.exists():
                break
            missing.append(each)
        for each in reversed(missing):
            with contextlib.suppress(FileExistsError):
                each.mkdir(mode=0o700)
                each.chmod(0o700)
        path.mkdir(exist_ok=True)  # FileExistsError where it is a file
    except OSError as error:
        raise data_folder_error(path, error) from error
    return path


def private_data_dir(data_dir: Path) -> Path:
    """Make the data folder; of an existing one, take the rights of other users away. Returns its path.

    Raises DataFolderError, DiskFull.
    """
    private_folder(data_dir)
    paths = DataDir(data_dir)
    try:
        if _holds_only_belljars_files(paths):
            _remove_others_rights(data_dir)
        for path in (
            *_private_folders(paths),
            paths.admin_key,
            paths.secrets_key,
            paths.server_address,
            paths.worker_name,
        ):
            _remove_others_rights(path)
        for path in data_dir.glob(f"{paths.database.name}*"):
            _remove_others_rights(path)
    except OSError as error:
        raise data_folder_error(data_dir, error) from error
    return data_dir


def _private_folders(paths: DataDir) -> tuple[Path, ...]:
    """Return the folders that stay private even when the user opens the data folder to others one day."""
    return paths.run, paths.blobs, paths.snapshots, paths.frozen, paths.cache, paths.layers, paths.tls


def _holds_only_belljars_files(paths: DataDir) -> bool:
    """Return whether no other program needs the folder: the user may have named /tmp, or a home, as the data folder."""
    names = {path.name for path in paths.root.iterdir()}
    known = (
        *_private_folders(paths),
        paths.admin_key,
        paths.secrets_key,
        paths.settings_file,
        paths.images,
        paths.recipes,
    )
    return paths.database.name in names or names <= {path.name for path in known}


def _remove_others_rights(path: Path) -> None:
    """Take the rights of group and others away from a file of this user. Links are left alone, and their targets."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode) or status.st_uid != os.geteuid() or mode & stat.S_ISVTX or not mode & 0o077:
        return
    try:
        path.chmod(mode & 0o700)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise


def private_file(path: Path) -> None:
    """Make an empty file that only this user may read, unless it is there. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)


def data_folder_error(path: Path, error: OSError) -> BelljarError:
    """Return the error for a data folder that cannot be made or written."""
    if is_disk_full(error):
        return DiskFull(f"no room left in {path}: free some space or move the data folder")
    return DataFolderError(f"cannot write {path}: {error.strerror}; set --data-dir to another folder")


@contextlib.contextmanager
def _locked(path: Path, taken: str) -> Iterator[None]:
    """Hold the lock of a file or a folder until the block ends.

    Raises DataFolderError with the message `taken` while another process holds it, or when the file cannot be written.
    """
    private_folder(path.parent)
    with contextlib.ExitStack() as stack:
        try:
            is_locked = stack.enter_context(try_lock(path, wait_seconds=_LOCK_WAIT_SECONDS))
        except OSError as error:
            raise data_folder_error(path, error) from error
        if not is_locked:
            raise DataFolderError(taken)
        _held.add(path)
        stack.callback(_held.discard, path)
        yield


@contextlib.contextmanager
def serving(data_dir: Path) -> Iterator[None]:
    """Be the one API server of a data folder. Raises DataFolderError while there is another."""
    path = private_folder(DataDir(data_dir).run)
    with _locked(path, f"another belljar serves {data_dir} already; stop it, or set --data-dir to another folder"):
        yield


def is_served(data_dir: Path) -> bool:
    """Return whether a server runs on the data folder now, by its lock."""
    try:
        descriptor = os.open(DataDir(data_dir).run, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not try_flock(descriptor, shared=True)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def working(data_dir: Path) -> Iterator[None]:
    """Be the one worker of a data folder. Raises DataFolderError while there is another."""
    path = DataDir(data_dir).worker_name
    with _locked(path, f"another belljar works on {data_dir} already; stop it, or set --data-dir to another folder"):
        yield


@contextlib.contextmanager
def alone(data_dir: Path, why: str) -> Iterator[None]:
    """Keep every other server and worker of a data folder away until the block ends.

    Raises DataFolderError, beginning with `why`, while one is there.
    """
    taken = f"{why}, but another belljar works on {data_dir}; stop it first"
    paths = DataDir(data_dir)
    private_folder(paths.run)
    with contextlib.ExitStack() as stack:
        for path in (paths.run, paths.worker_name):
            if path not in _held:
                stack.enter_context(_locked(path, taken))
        yield
