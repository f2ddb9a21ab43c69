"""Firecracker's two executables: where they are, whether they are new enough, whether they can run here at all."""

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

#: From this release on a clone may be given a socket path of its own, the serial port and vsock survive a snapshot, and
#: VMGenID binds in guest kernels before 6.10 (Firecracker's changelog, 1.16.0).
OLDEST = (1, 16)
_WHERE = "take both executables from one release at github.com/firecracker-microvm/firecracker/releases"
_PT_INTERP = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Programs:
    """What starts machines: Firecracker, and its jailer when belljar is root."""

    firecracker: Path
    #: None when belljar is not root: the jailer needs to be.
    jailer: Path | None
    #: Such as 1.16.1.
    version: str

    @property
    def identity(self) -> str:
        """What changes whenever the executable is replaced, or moved to a host whose snapshots differ."""
        status = self.firecracker.stat()
        return f"{self.firecracker}:{status.st_size}:{status.st_mtime_ns}:{platform.release()}:{_cpu_model()}"


def find_programs(settings: MachineSettings, *, jailed: bool) -> Programs:
    """The executables that the settings name. Raises MissingTool, and HostError for one that cannot be used."""
    firecracker = _found(settings.firecracker, "firecracker")
    version = version_of(firecracker)
    if not is_new_enough(version):
        oldest = ".".join(map(str, OLDEST))
        raise HostError(f"Firecracker {version} is too old: belljar needs {oldest} or newer; {_WHERE}")
    if not jailed:
        return Programs(firecracker=firecracker, jailer=None, version=version)
    jailer = _found(settings.jailer, "jailer")
    if (other := version_of(jailer)) != version:
        raise HostError(f"the jailer is of version {other}, Firecracker of {version}; {_WHERE}")
    if not _is_static(firecracker):
        raise HostError(f"{firecracker} is linked dynamically, which the jailer cannot start; {_WHERE}")
    return Programs(firecracker=firecracker, jailer=jailer, version=version)


def is_new_enough(version: str) -> bool:
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    return numbers >= OLDEST


def _found(name: str, setting: str) -> Path:
    found = find_executable(name)
    if found is None:
        raise MissingTool(f"{name} not found; {_WHERE}, put them on PATH or name them in the setting {setting}")
    return Path(found).resolve()


def version_of(executable: Path) -> str:
    """What `--version` says, such as 1.16.1. Raises HostError when the program cannot be run."""
    status = executable.stat()
    return _version(executable, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _version(executable: Path, _changed_ns: int) -> str:
    try:
        words = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            raise HostError(f"{executable} is not for this host's architecture, {platform.machine()}") from None
        raise HostError(f"{executable} cannot be run: {error.strerror}") from error
    except (subprocess.SubprocessError, UnicodeDecodeError) as error:
        raise HostError(f"{executable} --version failed: {error}") from error
    found = re.search(r"v(\d+\.\d+[\w.-]*)", words)
    if found is None:
        raise HostError(f"{executable} does not say its version; is it Firecracker?")
    return found[1]


def _is_static(executable: Path) -> bool:
    """Whether the kernel starts it without an interpreter (elf(5): no PT_INTERP). What is no ELF is not judged."""
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
    """A snapshot restores on the CPU model that it was taken on."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "CPU part")):
            return line.partition(":")[2].strip()
    return platform.machine()
