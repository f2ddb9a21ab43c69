"""Finds Firecracker's two executables and checks that they are new enough and can run on this host."""

from __future__ import annotations

import errno
import functools
import platform
import re
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from belljar.model.errors import HostError, MissingTool
from belljar.settings.machines import MachineSettings
from belljar.system.executables import find_executable

#: Since this release a clone may have a socket path of its own, the serial port and vsock survive a snapshot, and
#: VMGenID binds in guest kernels before 6.10 (Firecracker's changelog, 1.16.0).
OLDEST = (1, 16)
_WHERE = "take both executables from one release at github.com/firecracker-microvm/firecracker/releases"
_PT_INTERP = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Programs:
    """The executables: Firecracker, and its jailer when belljar is root."""

    firecracker: Path
    #: None when belljar is not root, which the jailer needs.
    jailer: Path | None
    #: Such as 1.16.1.
    version: str

    @property
    def identity(self) -> str:
        """Return a string that changes with the executable, and with the parts of the host that snapshots depend on."""
        status = self.firecracker.stat()
        return f"{self.firecracker}:{status.st_size}:{status.st_mtime_ns}:{platform.release()}:{_cpu_model()}"


def find_programs(settings: MachineSettings, *, jailed: bool) -> Programs:
    """Return the executables that the settings name. Raises MissingTool, and HostError for an unusable one."""
    firecracker = _find(settings.firecracker, "firecracker")
    version = version_of(firecracker)
    if not is_new_enough(version):
        oldest = ".".join(map(str, OLDEST))
        raise HostError(f"Firecracker {version} is too old: belljar needs {oldest} or newer; {_WHERE}")
    if not jailed:
        return Programs(firecracker=firecracker, jailer=None, version=version)
    jailer = _find(settings.jailer, "jailer")
    if (other := version_of(jailer)) != version:
        raise HostError(f"the jailer is of version {other}, Firecracker of {version}; {_WHERE}")
    if not _is_static(firecracker):
        raise HostError(f"{firecracker} is linked dynamically, which the jailer cannot start; {_WHERE}")
    return Programs(firecracker=firecracker, jailer=jailer, version=version)


def is_new_enough(version: str) -> bool:
    """Return whether that version is OLDEST or newer."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    return numbers >= OLDEST


def _find(name: str, setting: str) -> Path:
    path = find_executable(name)
    if path is None:
        raise MissingTool(f"{name} not found; {_WHERE}, put them on PATH or name them in the setting {setting}")
    return Path(path).resolve()


def version_of(executable: Path) -> str:
    """Return the version that `--version` prints, such as 1.16.1. Raises HostError when the program cannot be run."""
    status = executable.stat()
    return _version(executable, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _version(executable: Path, _changed_ns: int) -> str:
    try:
        run = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True, timeout=30)
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            raise HostError(f"{executable} is not for this host's architecture, {platform.machine()}") from None
        raise HostError(f"{executable} cannot be run: {error.strerror}") from error
    except (subprocess.SubprocessError, UnicodeDecodeError) as error:
        raise HostError(f"{executable} --version failed: {error}") from error
    match = re.search(r"v(\d+\.\d+[\w.-]*)", run.stdout)
    if match is None:
        raise HostError(f"{executable} --version prints no version; check that it is Firecracker")
    return match[1]


def _is_static(executable: Path) -> bool:
    """Return whether the kernel starts it without an interpreter (elf(5): no PT_INTERP); True for other formats."""
    with executable.open("rb") as file:
        header = file.read(64)
        if header[:5] != b"\x7fELF\x02":
            return True
        (offset,) = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        file.seek(offset)
        table = file.read(size * count)
    return all(struct.unpack_from("<I", table, number * size)[0] != _PT_INTERP for number in range(count))


@functools.cache
def _cpu_model() -> str:
    """Return the CPU model; a snapshot restores only on the model on which it was taken."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "CPU part")):
            return line.partition(":")[2].strip()
    return platform.machine()
