"""A fake for Firecracker's jailer: follows docs/jailer.md, and also shows the jail /usr.

What the fake for Firecracker is made of, Python and QEMU, is in the host's /usr; it is bound into the chroot in the
jail's own mount namespace, so that nothing of it is left.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import resource
import shutil
import stat
import sys
import zipfile
from pathlib import Path

VERSION = "1.16.1"
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE = 1, 32, 4096, 16384, 1 << 19
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    faults = json.loads(zipfile.ZipFile(sys.argv[0]).read("faults.json"))
    if sys.argv[1:] == ["--version"]:
        print(f"Jailer v{faults.get('jailer_version', faults.get('version', VERSION))}\n")
        return
    own, forwarded = _split(sys.argv[1:])
    options = _options(own)
    if faults.get("jailer_refuses"):
        sys.exit("Failed to create /dev/net/tun via mknod inside the jail: Operation not permitted (os error 1)")
    os.closerange(3, 65536)
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", options.id):
        sys.exit(f"Invalid instance ID: {options.id}")
    executable = Path(options.exec_file).resolve(strict=True)
    root = Path(options.chroot_base_dir).resolve(strict=True) / executable.name / options.id / "root"
    root.mkdir(parents=True, exist_ok=True)
    inside = root / executable.name
    shutil.copy(executable, inside)
    os.chown(inside, options.uid, options.gid)
    if options.netns:
        with open(options.netns) as namespace:
            _check(_libc.setns(namespace.fileno(), _CLONE_NEWNET), "Failed to join network namespace: netns")
    for limit in options.resource_limit:
        name, _, value = limit.partition("=")
        if name == "no-file":
            resource.setrlimit(resource.RLIMIT_NOFILE, (int(value), int(value)))
        elif name != "fsize":  # the emulator keeps the guest's memory in a file, which the real one does not
            sys.exit(f"Invalid resource argument: {name}")
    _enter(root)
    _furnish(options)
    Path(f"/{executable.name}.pid").write_text(str(os.getpid()))
    os.setgroups([])
    os.setgid(options.gid)
    os.setuid(options.uid)
    environment = {"PATH": "/usr/bin:/bin"}  # the real one leaves none; Python and QEMU are found by it
    argv = [f"/{executable.name}", "--id", options.id, "--start-time-us", "0", "--start-time-cpu-us", "0"]
    os.execve(f"/{executable.name}", [*argv, "--parent-cpu-time-us", "0", *forwarded], environment)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--id", required=True)
    parser.add_argument("--exec-file", required=True)
    parser.add_argument("--uid", required=True, type=int)
    parser.add_argument("--gid", required=True, type=int)
    parser.add_argument("--chroot-base-dir", default="/srv/jailer")
    parser.add_argument("--netns")
    parser.add_argument("--resource-limit", action="append", default=[])
    return parser.parse_args(arguments)


def _enter(root: Path) -> None:
    _check(_libc.unshare(_CLONE_NEWNS), "Failed to unshare into new mount namespace")
    _mount("none", "/", _MS_SLAVE | _MS_REC)
    _mount(root, root, _MS_BIND | _MS_REC)
    for name in ("usr", "lib", "lib64", "bin", "etc"):
        place = Path("/") / name
        if place.is_symlink():
            (root / name).symlink_to(os.readlink(place))
        elif place.is_dir():
            (root / name).mkdir()
            _mount(place, root / name, _MS_BIND | _MS_REC)
            _mount("none", root / name, _MS_BIND | _MS_REMOUNT | _MS_RDONLY)
    os.chdir(root)
    os.chroot(".")


def _furnish(options: argparse.Namespace) -> None:
    for folder in ("/", "/dev", "/dev/net", "/run"):
        os.makedirs(folder, exist_ok=True)
        os.chmod(folder, 0o700)
        os.chown(folder, options.uid, options.gid)
    nodes = {"net/tun": (10, 200), "kvm": (10, 232), "urandom": (1, 9), "null": (1, 3)}
    for name, (major, minor) in nodes.items():
        os.mknod(f"/dev/{name}", stat.S_IFCHR | 0o600, os.makedev(major, minor))
        os.chown(f"/dev/{name}", options.uid, options.gid)


def _mount(source: object, target: object, flags: int) -> None:
    _check(_libc.mount(str(source).encode(), str(target).encode(), None, flags, None), f"Failed to mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
